package cadenza.examples;

import cadenza.CadenzaClient;
import cadenza.v1.Circuit;
import cadenza.v1.CloseSessionRequest;
import cadenza.v1.CreateSessionRequest;
import cadenza.v1.EstimatorJob;
import cadenza.v1.EstimatorPub;
import cadenza.v1.GetJobResultRequest;
import cadenza.v1.Job;
import cadenza.v1.JobResult;
import cadenza.v1.JobSpec;
import cadenza.v1.JobState;
import cadenza.v1.Observable;
import cadenza.v1.ObservablesArray;
import cadenza.v1.PauliTerm;
import cadenza.v1.Program;
import cadenza.v1.SamplerJob;
import cadenza.v1.SamplerPub;
import cadenza.v1.SubmitJobRequest;
import com.google.protobuf.ByteString;
import io.grpc.StatusRuntimeException;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.atomic.AtomicReference;

/**
 * An iterative program: opens a session, sends a circuit with a parameter once, then only values of the parameter with
 * the circuit's digest, follows each job, reads expectation values and counts, and closes the session.
 *
 * <pre>java -cp 'target/classes:target/lib/*' cadenza.examples.Sweep [TARGET] [DEVICE]</pre>
 */
public final class Sweep {
  private static final String CIRCUIT =
      """
      OPENQASM 3.0;
      include "stdgates.inc";
      input angle theta;
      qubit[2] q;
      ry(theta) q[0];
      cx q[0], q[1];
      """;
  private static final String MEASUREMENT = "bit[2] c;\nc = measure q;\n";

  private final CadenzaClient client;
  private final String session;

  private Sweep(CadenzaClient client, String session) {
    this.client = client;
    this.session = session;
  }

  public static void main(String[] arguments) throws Exception {
    String target = arguments.length > 0 ? arguments[0] : "127.0.0.1:50051";
    String device = arguments.length > 1 ? arguments[1] : "aer";
    String user = System.getenv().getOrDefault("CADENZA_USER", System.getProperty("user.name"));
    String ca = System.getenv("CADENZA_TLS_CA");
    var options =
        new CadenzaClient.Options(user, System.getenv("CADENZA_TOKEN"), ca == null ? null : new File(ca));
    try (var client = new CadenzaClient(target, options)) {
      var request = CreateSessionRequest.newBuilder().setDevice(device).build();
      String session = client.sessions.createSession(request).getSession().getSessionId();
      System.out.println("session " + session);
      var close = CloseSessionRequest.newBuilder().setSessionId(session).build();
      try (AutoCloseable opened = () -> client.sessions.closeSession(close)) {
        new Sweep(client, session).iterate();
      }
    } catch (JobFailed error) {
      System.err.println(error.getMessage());
      System.exit(1);
    } catch (StatusRuntimeException error) {
      var refusal = CadenzaClient.refusal(error);
      if (refusal.isEmpty()) {
        System.err.println(error.getMessage());
      } else if (refusal.get().getReason().equals("UNKNOWN_DEVICE")) {
        System.err.println("there is no device " + device + "; `cadenza devices` lists them");
      } else {
        System.err.println("refused, " + refusal.get().getReason() + " " + refusal.get().getMetadataMap() + ": " + error.getMessage());
      }
      System.exit(1);
    }
  }

  private void iterate() throws Exception {
    byte[] digest = MessageDigest.getInstance("SHA-256").digest(CIRCUIT.getBytes(StandardCharsets.UTF_8));
    var source = Circuit.newBuilder().setOpenqasm3(CIRCUIT).build();
    var energy =
        Observable.newBuilder()
            .addTerms(PauliTerm.newBuilder().setPauli("IZ").setCoefficient(0.5))
            .addTerms(PauliTerm.newBuilder().setPauli("XX").setCoefficient(0.5));
    for (int step = 0; step < 5; step++) {
      double theta = step * Math.PI / 4;
      var pub =
          EstimatorPub.newBuilder()
              .setCircuit(source)
              .setParameterValues(CadenzaClient.tensor(List.of(1L), theta))
              .setObservables(ObservablesArray.newBuilder().addObservables(energy));
      var result = run(Program.newBuilder().setEstimator(EstimatorJob.newBuilder().addPubs(pub)).build());
      var evs = CadenzaClient.field(result.getPubs(0), "evs").getTensor();
      System.out.printf(Locale.ROOT, "theta %.3f  energy %+.6f%n", theta, CadenzaClient.floats(evs.getData().toByteArray())[0]);
      source = Circuit.newBuilder().setDigest(ByteString.copyFrom(digest)).build(); // the session has it now
    }
    var pub =
        SamplerPub.newBuilder()
            .setCircuit(Circuit.newBuilder().setOpenqasm3(CIRCUIT + MEASUREMENT))
            .setParameterValues(CadenzaClient.tensor(List.of(1L), Math.PI / 2))
            .setShots(1000);
    var result = run(Program.newBuilder().setSampler(SamplerJob.newBuilder().addPubs(pub)).build());
    System.out.println("counts at pi/2 " + CadenzaClient.counts(CadenzaClient.field(result.getPubs(0), "c").getBits()));
  }

  /** Submits a job to the session and waits for its result. */
  private JobResult run(Program program) throws JobFailed, InterruptedException {
    var spec = JobSpec.newBuilder().setSessionId(session).setProgram(program);
    var job = new AtomicReference<Job>(client.jobs.submitJob(SubmitJobRequest.newBuilder().setJob(spec).build()).getJob());
    var result = new AtomicReference<JobResult>();
    client.watch(
        job.get().getJobId(),
        event -> {
          if (event.hasJobSnapshot()) {
            job.set(event.getJobSnapshot().getJob());
            result.set(event.getJobSnapshot().hasResult() ? event.getJobSnapshot().getResult() : null);
          } else if (event.hasJobEnded()) {
            job.set(event.getJobEnded().getJob());
            result.set(event.getJobEnded().hasResult() ? event.getJobEnded().getResult() : null);
          }
        });
    if (job.get().getState() != JobState.JOB_STATE_SUCCEEDED) {
      throw new JobFailed("job " + job.get().getJobId() + ": " + job.get().getReason() + ": " + job.get().getDetail());
    }
    if (result.get() == null) { // too large to ride along
      var request = GetJobResultRequest.newBuilder().setJobId(job.get().getJobId()).build();
      result.set(client.jobs.getJobResult(request).getResult());
    }
    return result.get();
  }

  /** A job that ended without a result. */
  private static final class JobFailed extends Exception {
    JobFailed(String message) {
      super(message);
    }
  }
}
