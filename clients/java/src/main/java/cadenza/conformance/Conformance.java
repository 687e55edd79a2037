package cadenza.conformance;

import cadenza.CadenzaClient;
import cadenza.v1.DeviceServiceGrpc;
import cadenza.v1.JobResult;
import cadenza.v1.JobServiceGrpc;
import cadenza.v1.ReservationServiceGrpc;
import cadenza.v1.ServerServiceGrpc;
import cadenza.v1.SessionServiceGrpc;
import cadenza.v1.ShareServiceGrpc;
import cadenza.v1.StreamJobResultRequest;
import cadenza.v1.StreamJobResultResponse;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.gson.JsonPrimitive;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.util.JsonFormat;
import com.google.protobuf.util.JsonFormat.TypeRegistry;
import com.google.rpc.ErrorDetailsProto;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServiceDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;

/**
 * Plays the checks of tests/conformance and prints one line of JSON for each; see checks.yaml there.
 *
 * <pre>java -cp 'target/classes:target/lib/*' cadenza.conformance.Conformance CHECKS.json</pre>
 */
public final class Conformance {
  private static final double CALL_SECONDS_MAX = 30;
  private static final double TOLERANCE = 1e-6;
  private static final List<ServiceDescriptor> SERVICES =
      List.of(
          ServerServiceGrpc.getServiceDescriptor(),
          SessionServiceGrpc.getServiceDescriptor(),
          JobServiceGrpc.getServiceDescriptor(),
          DeviceServiceGrpc.getServiceDescriptor(),
          ReservationServiceGrpc.getServiceDescriptor(),
          ShareServiceGrpc.getServiceDescriptor());
  private static final TypeRegistry DETAILS =
      TypeRegistry.newBuilder().add(ErrorDetailsProto.getDescriptor().getMessageTypes()).build();
  private static final Map<String, CadenzaClient> CLIENTS = new HashMap<>();

  /** A check that did not come out as it says. */
  private static final class CheckException extends Exception {
    CheckException(String problem) {
      super(problem);
    }
  }

  private record Open(Iterator<? extends Message> messages, Context.CancellableContext context) {}

  private final Map<String, JsonElement> variables = new HashMap<>();
  private final Map<String, Open> streams = new HashMap<>();
  private String user;

  public static void main(String[] arguments) throws Exception {
    JsonObject plan = JsonParser.parseString(Files.readString(Path.of(arguments[0]))).getAsJsonObject();
    boolean failed = false;
    for (JsonElement element : plan.getAsJsonArray("checks")) {
      JsonObject check = element.getAsJsonObject();
      var player = new Conformance();
      player.variables.putAll(plan.getAsJsonObject("variables").asMap());
      long began = System.nanoTime();
      String problem = "";
      try {
        String user = check.has("user") ? check.get("user").getAsString() : "${run}/ann";
        player.play(check.getAsJsonArray("steps"), user);
      } catch (Exception error) {
        problem = error instanceof CheckException ? error.getMessage() : error.toString();
        failed = true;
      }
      var line = new JsonObject();
      line.add("check", check.get("name"));
      line.addProperty("passed", problem.isEmpty());
      line.addProperty("ms", (System.nanoTime() - began) / 1_000_000);
      line.addProperty("problem", problem);
      System.out.println(line);
    }
    CLIENTS.values().forEach(CadenzaClient::close);
    System.exit(failed ? 1 : 0);
  }

  private void play(JsonArray steps, String user) throws Exception {
    this.user = fill(new JsonPrimitive(user)).getAsString();
    int number = 0;
    try {
      for (JsonElement raw : steps) {
        number++;
        step(fill(raw).getAsJsonObject());
      }
    } catch (CheckException problem) {
      throw new CheckException("step " + number + ": " + problem.getMessage());
    } catch (StatusRuntimeException refused) {
      throw new CheckException("step " + number + ": it was refused: " + refused.getMessage());
    } finally {
      streams.values().forEach(open -> open.context().cancel(null));
    }
  }

  private void step(JsonObject step) throws Exception {
    JsonElement answer;
    try {
      answer = perform(step);
    } catch (StatusRuntimeException error) {
      if (!step.has("refused")) {
        throw error;
      }
      check(step.get("refused"), describe(error), "refusal");
      return;
    }
    if (step.has("refused")) {
      throw new CheckException("it was not refused, but answered " + show(answer));
    }
    if (step.has("expect")) {
      check(step.get("expect"), answer, "answer");
    }
    if (step.has("save")) {
      for (var save : step.getAsJsonObject("save").entrySet()) {
        variables.put(save.getKey(), find(save.getValue().getAsString(), answer));
      }
    }
  }

  private static JsonObject describe(StatusRuntimeException error) {
    var described = new JsonObject();
    var metadata = new JsonObject();
    described.addProperty("code", error.getStatus().getCode().name());
    described.add("metadata", metadata);
    CadenzaClient.refusal(error)
        .ifPresent(
            info -> {
              described.addProperty("reason", info.getReason());
              info.getMetadataMap().forEach(metadata::addProperty);
            });
    return described;
  }

  private JsonElement perform(JsonObject step) throws Exception {
    if (step.has("cancel")) {
      return cancel(streams.remove(step.get("cancel").getAsString()));
    }
    if (step.has("read")) {
      return read(streams.get(step.get("read").getAsString()).messages(), step.get("until"));
    }
    var method = method(step.get("call").getAsString());
    Channel channel = channel(step);
    double seconds = step.has("timeout_s") ? step.get("timeout_s").getAsDouble() : CALL_SECONDS_MAX;
    var options = CallOptions.DEFAULT.withDeadlineAfter((long) (seconds * 1e9), TimeUnit.NANOSECONDS);
    Message request = parse(method, step.has("request") ? step.get("request") : new JsonObject());
    if (step.has("assemble")) {
      return assemble(channel, (StreamJobResultRequest) request);
    }
    if (method.getType() == MethodDescriptor.MethodType.UNARY) {
      return toJson(ClientCalls.blockingUnaryCall(channel, method, options, request));
    }
    var context = Context.current().withCancellation();
    Iterator<Message> messages =
        method.getType() == MethodDescriptor.MethodType.SERVER_STREAMING
            ? context.call(() -> ClientCalls.blockingServerStreamingCall(channel, method, options, request))
            : exchange(channel, method, options, step.getAsJsonArray("requests"));
    if (step.has("stream")) {
      streams.put(step.get("stream").getAsString(), new Open(messages, context));
    }
    try {
      return read(messages, step.get("until"));
    } finally {
      if (!step.has("stream")) {
        context.cancel(null);
      }
    }
  }

  /** Sends all requests over a stream both ways, and gives the answers. */
  private static Iterator<Message> exchange(
      Channel channel, MethodDescriptor<Message, Message> method, CallOptions options, JsonArray requests)
      throws Exception {
    var answers = new LinkedBlockingQueue<Object>();
    var end = new Object();
    StreamObserver<Message> sender =
        ClientCalls.asyncBidiStreamingCall(
            channel.newCall(method, options),
            new StreamObserver<>() {
              @Override
              public void onNext(Message answer) {
                answers.add(answer);
              }

              @Override
              public void onError(Throwable error) {
                answers.add(error);
              }

              @Override
              public void onCompleted() {
                answers.add(end);
              }
            });
    for (JsonElement request : requests) {
      sender.onNext(parse(method, request));
    }
    sender.onCompleted();
    return new Iterator<>() {
      private Object next;

      @Override
      public boolean hasNext() {
        try {
          next = next == null ? answers.take() : next;
        } catch (InterruptedException interrupted) {
          throw new IllegalStateException(interrupted);
        }
        if (next instanceof StatusRuntimeException error) {
          throw error;
        }
        return next != end;
      }

      @Override
      public Message next() {
        hasNext();
        var message = (Message) next;
        next = null;
        return message;
      }
    };
  }

  /** Cancels an open stream; it must end with CANCELLED. */
  private static JsonElement cancel(Open open) throws CheckException {
    open.context().cancel(null);
    try {
      open.messages().forEachRemaining(message -> {});
    } catch (StatusRuntimeException error) {
      if (error.getStatus().getCode() == Status.Code.CANCELLED) {
        return new JsonObject();
      }
      throw new CheckException("the cancelled stream ended with " + error.getStatus());
    }
    throw new CheckException("the cancelled stream ended as if nothing had happened");
  }

  /** Reads until a message is like {@code until}; without it, to the end. */
  private static JsonElement read(Iterator<? extends Message> messages, JsonElement until) throws Exception {
    var found = new JsonArray();
    var answer = new JsonObject();
    answer.add("messages", found);
    while (messages.hasNext()) {
      JsonElement message = toJson(messages.next());
      found.add(message);
      if (until != null && differ(until, message, "") == null) {
        return answer;
      }
    }
    if (until != null) {
      throw new CheckException("the stream ended without the message to stop at, after " + show(found));
    }
    return answer;
  }

  /** Reads a result in two streams, the second beginning where the first was broken off after one piece. */
  private static JsonElement assemble(Channel channel, StreamJobResultRequest request) throws Exception {
    var stub = JobServiceGrpc.newBlockingStub(channel);
    var context = Context.current().withCancellation();
    StreamJobResultResponse first = context.call(() -> stub.streamJobResult(request).next());
    context.cancel(null);
    var data = new ByteArrayOutputStream();
    first.getData().writeTo(data);
    int pieces = 1;
    var rest = stub.streamJobResult(request.toBuilder().setOffset(data.size()).build());
    while (rest.hasNext()) {
      var piece = rest.next();
      if (piece.getOffset() != data.size()) {
        throw new CheckException("a piece begins at " + piece.getOffset() + ", not at " + data.size());
      }
      piece.getData().writeTo(data);
      pieces++;
    }
    if (data.size() != first.getTotalBytes()) {
      throw new CheckException("the pieces have " + data.size() + " bytes together, not " + first.getTotalBytes());
    }
    var answer = new JsonObject();
    answer.addProperty("pieces", pieces);
    answer.add("result", toJson(JobResult.parseFrom(data.toByteArray())));
    return answer;
  }

  @SuppressWarnings("unchecked")
  private static MethodDescriptor<Message, Message> method(String call) {
    return SERVICES.stream()
        .flatMap(service -> service.getMethods().stream())
        .filter(method -> method.getFullMethodName().equals("cadenza.v1." + call))
        .map(method -> (MethodDescriptor<Message, Message>) method)
        .findFirst()
        .orElseThrow();
  }

  private Channel channel(JsonObject step) throws Exception {
    boolean secure = step.has("tls");
    String server = secure ? "tls_" : step.has("server") ? step.get("server").getAsString() + "_" : "";
    String target = variables.get(server + "target").getAsString();
    if (!CLIENTS.containsKey(target)) {
      File ca = secure ? new File(variables.get("tls_ca").getAsString()) : null;
      CLIENTS.put(target, new CadenzaClient(target, new CadenzaClient.Options(null, null, ca)));
    }
    var headers = new Metadata();
    String name = step.has("user") ? step.get("user").getAsString() : user;
    if (!name.isEmpty()) {
      headers.put(Metadata.Key.of("cadenza-user", Metadata.ASCII_STRING_MARSHALLER), name);
    }
    if (step.has("metadata")) {
      for (var entry : step.getAsJsonObject("metadata").entrySet()) {
        var key = Metadata.Key.of(entry.getKey(), Metadata.ASCII_STRING_MARSHALLER);
        headers.put(key, entry.getValue().getAsString());
      }
    }
    return ClientInterceptors.intercept(
        CLIENTS.get(target).channel(), MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  private static Message parse(MethodDescriptor<Message, Message> method, JsonElement value)
      throws InvalidProtocolBufferException {
    var marshaller = (MethodDescriptor.PrototypeMarshaller<Message>) method.getRequestMarshaller();
    Message.Builder builder = marshaller.getMessagePrototype().newBuilderForType();
    JsonFormat.parser().merge(value.toString(), builder);
    return builder.build();
  }

  private static JsonElement toJson(Message message) throws InvalidProtocolBufferException {
    return JsonParser.parseString(JsonFormat.printer().usingTypeRegistry(DETAILS).print(message));
  }

  /** {@code ${name}} replaced; a text that is nothing else becomes the variable, whatever its type. */
  private JsonElement fill(JsonElement value) {
    if (value.isJsonArray()) {
      var filled = new JsonArray();
      value.getAsJsonArray().forEach(item -> filled.add(fill(item)));
      return filled;
    }
    if (value.isJsonObject()) {
      JsonElement repeat = value.getAsJsonObject().get("$repeat");
      if (repeat != null) {
        var pair = repeat.getAsJsonArray();
        return new JsonPrimitive(pair.get(0).getAsString().repeat(pair.get(1).getAsInt()));
      }
      var filled = new JsonObject();
      value.getAsJsonObject().entrySet().forEach(item -> filled.add(item.getKey(), fill(item.getValue())));
      return filled;
    }
    if (!value.isJsonPrimitive() || !value.getAsJsonPrimitive().isString()) {
      return value;
    }
    String text = value.getAsString();
    if (text.startsWith("${") && text.indexOf('}') == text.length() - 1) {
      return variables.get(text.substring(2, text.length() - 1));
    }
    for (var variable : variables.entrySet()) {
      if (variable.getValue().isJsonPrimitive()) {
        text = text.replace("${" + variable.getKey() + "}", variable.getValue().getAsString());
      }
    }
    return new JsonPrimitive(text);
  }

  private static JsonElement find(String path, JsonElement value) throws CheckException {
    JsonElement found = value;
    for (String part : path.split("\\.")) {
      if (found instanceof JsonArray items) {
        int index = Integer.parseInt(part);
        found = items.get(index < 0 ? index + items.size() : index);
      } else {
        found = found == null ? null : found.getAsJsonObject().get(part);
      }
    }
    if (found == null) {
      throw new CheckException("there is nothing at " + path + " to save: " + show(value));
    }
    return found;
  }

  private static void check(JsonElement expected, JsonElement actual, String place) throws CheckException {
    String difference = differ(expected, actual, place);
    if (difference != null) {
      throw new CheckException(difference);
    }
  }

  /** Where {@code actual} (null: nothing) is not what is expected; null: it is. */
  private static String differ(JsonElement expected, JsonElement actual, String place) {
    if (expected instanceof JsonObject items) {
      boolean matched = false;
      for (var item : items.entrySet()) {
        if (item.getKey().startsWith("$")) {
          matched = true;
          if (!matches(item.getKey(), item.getValue(), actual)) {
            return place + ": " + show(actual) + " is not " + item.getKey() + " " + item.getValue();
          }
        }
      }
      if (matched) {
        return null;
      }
      if (!(actual instanceof JsonObject found)) {
        return place + ": " + show(actual) + " is no object";
      }
      for (var item : items.entrySet()) {
        String difference = differ(item.getValue(), found.get(item.getKey()), place + "." + item.getKey());
        if (difference != null) {
          return difference;
        }
      }
      return null;
    }
    if (expected instanceof JsonArray items) {
      if (!(actual instanceof JsonArray found) || found.size() != items.size()) {
        return place + ": " + show(actual) + " has not " + items.size() + " elements";
      }
      for (int i = 0; i < items.size(); i++) {
        String difference = differ(items.get(i), found.get(i), place + "." + i);
        if (difference != null) {
          return difference;
        }
      }
      return null;
    }
    return expected.equals(actual == null ? JsonNull.INSTANCE : actual)
        ? null
        : place + ": " + show(actual) + " is not " + show(expected);
  }

  private static boolean matches(String name, JsonElement argument, JsonElement actual) {
    List<JsonElement> items = actual instanceof JsonArray array ? array.asList() : List.of();
    List<JsonElement> arguments = argument instanceof JsonArray array ? array.asList() : List.of();
    Predicate<JsonElement> like = item -> differ(argument, item, "") == null;
    switch (name) {
      case "$present":
        return (actual != null) == argument.getAsBoolean();
      case "$length":
        return items.size() == argument.getAsInt();
      case "$min":
        return actual != null && actual.getAsDouble() >= argument.getAsDouble();
      case "$in":
        return arguments.contains(actual == null ? JsonNull.INSTANCE : actual);
      case "$first":
        return !items.isEmpty() && like.test(items.get(0));
      case "$last":
        return !items.isEmpty() && like.test(items.get(items.size() - 1));
      case "$contains":
        return items.stream().anyMatch(like);
      default:
    }
    byte[] data = Base64.getDecoder().decode(actual == null ? "" : actual.getAsString());
    switch (name) {
      case "$bytes":
        return data.length == argument.getAsInt();
      case "$bytes_in":
        List<Integer> allowed = arguments.stream().map(JsonElement::getAsInt).toList();
        for (byte one : data) {
          if (!allowed.contains(one & 0xff)) {
            return false;
          }
        }
        return true;
      case "$float64s":
        double[] values = CadenzaClient.floats(data);
        boolean alike = values.length == arguments.size();
        for (int i = 0; alike && i < values.length; i++) {
          alike = Math.abs(values[i] - arguments.get(i).getAsDouble()) < TOLERANCE;
        }
        return alike;
      default:
        throw new IllegalArgumentException("there is no matcher " + name);
    }
  }

  private static String show(JsonElement value) {
    String text = String.valueOf(value);
    return text.substring(0, Math.min(text.length(), 300));
  }
}
