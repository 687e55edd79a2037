package cadenza;

import cadenza.v1.BitArray;
import cadenza.v1.DataField;
import cadenza.v1.DeviceServiceGrpc;
import cadenza.v1.Dtype;
import cadenza.v1.Event;
import cadenza.v1.JobServiceGrpc;
import cadenza.v1.PubResult;
import cadenza.v1.ReservationServiceGrpc;
import cadenza.v1.ServerServiceGrpc;
import cadenza.v1.SessionServiceGrpc;
import cadenza.v1.ShareServiceGrpc;
import cadenza.v1.Tensor;
import cadenza.v1.WatchJobRequest;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.function.Consumer;

/** One connection to a Cadenza server: the blocking stubs of its services, and what makes them easy to use. */
public final class CadenzaClient implements AutoCloseable {
  /** Domain of the server's {@code google.rpc.ErrorInfo}. */
  public static final String DOMAIN = "cadenza";

  /**
   * Who calls, and how the server is reached; any may be null.
   *
   * @param user path in the share tree, such as {@code lab/alice}: for servers that trust names
   * @param token for servers with tokens; it says who calls
   * @param ca PEM file of the authority that signed the server's certificate; null: no TLS
   */
  public record Options(String user, String token, File ca) {}

  public final ServerServiceGrpc.ServerServiceBlockingStub server;
  public final SessionServiceGrpc.SessionServiceBlockingStub sessions;
  public final JobServiceGrpc.JobServiceBlockingStub jobs;
  public final DeviceServiceGrpc.DeviceServiceBlockingStub devices;
  public final ReservationServiceGrpc.ReservationServiceBlockingStub reservations;
  public final ShareServiceGrpc.ShareServiceBlockingStub shares;

  private final ManagedChannel connection;
  private final Channel channel;

  /** A client of the server at {@code target}, HOST:PORT. The connection is made with the first call. */
  public CadenzaClient(String target, Options options) throws IOException {
    var credentials =
        options.ca() == null
            ? InsecureChannelCredentials.create()
            : TlsChannelCredentials.newBuilder().trustManager(options.ca()).build();
    connection =
        Grpc.newChannelBuilder(target, credentials)
            .maxInboundMessageSize(Integer.MAX_VALUE) // results may have more than 4 MiB
            .build();
    var identity = new Metadata();
    if (options.token() != null) {
      identity.put(key("authorization"), "Bearer " + options.token());
    } else if (options.user() != null) {
      identity.put(key("cadenza-user"), options.user());
    }
    channel = ClientInterceptors.intercept(connection, MetadataUtils.newAttachHeadersInterceptor(identity));
    server = ServerServiceGrpc.newBlockingStub(channel);
    sessions = SessionServiceGrpc.newBlockingStub(channel);
    jobs = JobServiceGrpc.newBlockingStub(channel);
    devices = DeviceServiceGrpc.newBlockingStub(channel);
    reservations = ReservationServiceGrpc.newBlockingStub(channel);
    shares = ShareServiceGrpc.newBlockingStub(channel);
  }

  /** The connection, for stubs of other kinds; it says who calls. */
  public Channel channel() {
    return channel;
  }

  /** Closes the connection; what is under way ends. */
  @Override
  public void close() {
    connection.shutdownNow();
  }

  /** Shows {@code see} every change of a job until it is final. A stream that breaks goes on after the last one seen. */
  public void watch(String jobId, Consumer<Event> see) throws InterruptedException {
    var request = WatchJobRequest.newBuilder().setJobId(jobId).setIncludeResults(true);
    while (true) {
      try {
        jobs.watchJob(request.build())
            .forEachRemaining(
                message -> {
                  request.setResumeAfter(message.getEvent().getEventNumber());
                  see.accept(message.getEvent());
                });
        return;
      } catch (StatusRuntimeException error) {
        String reason = refusal(error).map(ErrorInfo::getReason).orElse("");
        if (!request.hasResumeAfter()) {
          throw error;
        } else if (reason.equals("RESUME_TOO_OLD")) {
          request.clearResumeAfter(); // begin again with a snapshot
        } else if (error.getStatus().getCode() == Status.Code.UNAVAILABLE) {
          Thread.sleep(1000); // the server restarts, perhaps
        } else if (!reason.equals("WATCH_TOO_SLOW")) {
          throw error;
        }
      }
    }
  }

  /** Why the server refused a call: its reason is a name of {@code ErrorReason} without prefix. Empty: it did not. */
  public static Optional<ErrorInfo> refusal(Throwable error) {
    var status = StatusProto.fromThrowable(error);
    if (status != null) {
      for (Any detail : status.getDetailsList()) {
        try {
          if (detail.is(ErrorInfo.class) && detail.unpack(ErrorInfo.class).getDomain().equals(DOMAIN)) {
            return Optional.of(detail.unpack(ErrorInfo.class));
          }
        } catch (InvalidProtocolBufferException broken) {
          return Optional.empty();
        }
      }
    }
    return Optional.empty();
  }

  /** An array of doubles as the contract carries it: C order, little-endian. */
  public static Tensor tensor(List<Long> shape, double... values) {
    var data = ByteBuffer.allocate(8 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    for (double value : values) {
      data.putDouble(value);
    }
    return Tensor.newBuilder()
        .setDtype(Dtype.DTYPE_FLOAT64)
        .addAllShape(shape)
        .setData(ByteString.copyFrom(data.flip()))
        .build();
  }

  /** The elements of a tensor of doubles, from its data. */
  public static double[] floats(byte[] data) {
    var values = new double[data.length / 8];
    ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asDoubleBuffer().get(values);
    return values;
  }

  /** How often each value of a register was measured; bit 0 is the right-most character. */
  public static Map<String, Integer> counts(BitArray bits) {
    int width = bits.getNumBits();
    int size = (width + 7) / 8;
    var counts = new TreeMap<String, Integer>();
    for (int at = 0; at < bits.getData().size(); at += size) {
      var word = new StringBuilder();
      for (int bit = width - 1; bit >= 0; bit--) {
        word.append(bits.getData().byteAt(at + size - 1 - bit / 8) >> bit % 8 & 1);
      }
      counts.merge(word.toString(), 1, Integer::sum);
    }
    return counts;
  }

  /** The named array of a PUB's result: a register, {@code evs} or {@code stds}. */
  public static DataField field(PubResult result, String name) {
    return result.getFieldsList().stream().filter(field -> field.getName().equals(name)).findFirst().orElseThrow();
  }

  private static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }
}
