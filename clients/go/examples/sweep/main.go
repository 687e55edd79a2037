// Sweep runs an iterative program: it opens a session, sends a circuit with a parameter once, then only values of the
// parameter with the circuit's digest, follows each job, reads expectation values and counts, and closes the session.
//
//	go run ./examples/sweep [TARGET] [DEVICE]
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log"
	"math"
	"os"
	"os/user"
	"time"

	"cadenza"
	cadenzav1 "cadenza/v1"
)

const circuit = `OPENQASM 3.0;
include "stdgates.inc";
input angle theta;
qubit[2] q;
ry(theta) q[0];
cx q[0], q[1];
`

const measurement = "bit[2] c;\nc = measure q;\n"

func main() {
	target, device := "127.0.0.1:50051", "aer"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if len(os.Args) > 2 {
		device = os.Args[2]
	}
	name := os.Getenv("CADENZA_USER")
	if me, err := user.Current(); name == "" && err == nil {
		name = me.Username
	}
	client, err := cadenza.Dial(target, cadenza.Options{
		User: name, Token: os.Getenv("CADENZA_TOKEN"), CA: os.Getenv("CADENZA_TLS_CA"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := sweep(ctx, client, device); err != nil {
		switch reason, about := cadenza.Reason(err); reason {
		case "":
			log.Fatal(err)
		case "UNKNOWN_DEVICE":
			log.Fatalf("there is no device %q; `cadenza devices` lists them", device)
		default:
			log.Fatalf("refused, %s %v: %v", reason, about, err)
		}
	}
}

func sweep(ctx context.Context, client *cadenza.Client, device string) error {
	opened, err := client.Sessions.CreateSession(ctx, &cadenzav1.CreateSessionRequest{Device: device})
	if err != nil {
		return err
	}
	session := opened.Session.SessionId
	defer client.Sessions.CloseSession(context.WithoutCancel(ctx), &cadenzav1.CloseSessionRequest{SessionId: session})
	fmt.Println("session", session)

	digest := sha256.Sum256([]byte(circuit))
	source := &cadenzav1.Circuit{Source: &cadenzav1.Circuit_Openqasm3{Openqasm3: circuit}}
	for step := range 5 {
		theta := float64(step) * math.Pi / 4
		result, err := run(ctx, client, session, &cadenzav1.Program{Kind: &cadenzav1.Program_Estimator{
			Estimator: &cadenzav1.EstimatorJob{Pubs: []*cadenzav1.EstimatorPub{{
				Circuit:         source,
				ParameterValues: cadenza.Tensor([]int64{1}, theta),
				Observables: &cadenzav1.ObservablesArray{Observables: []*cadenzav1.Observable{
					{Terms: []*cadenzav1.PauliTerm{{Pauli: "IZ", Coefficient: 0.5}, {Pauli: "XX", Coefficient: 0.5}}},
				}},
			}}},
		}})
		if err != nil {
			return err
		}
		fmt.Printf("theta %.3f  energy %+.6f\n", theta, cadenza.Floats(cadenza.Field(result.Pubs[0], "evs").GetTensor())[0])
		source = &cadenzav1.Circuit{Source: &cadenzav1.Circuit_Digest{Digest: digest[:]}} // the session has it now
	}

	shots := int64(1000)
	result, err := run(ctx, client, session, &cadenzav1.Program{Kind: &cadenzav1.Program_Sampler{
		Sampler: &cadenzav1.SamplerJob{Pubs: []*cadenzav1.SamplerPub{{
			Circuit:         &cadenzav1.Circuit{Source: &cadenzav1.Circuit_Openqasm3{Openqasm3: circuit + measurement}},
			ParameterValues: cadenza.Tensor([]int64{1}, math.Pi/2),
			Shots:           &shots,
		}}},
	}})
	if err != nil {
		return err
	}
	fmt.Println("counts at pi/2", cadenza.Counts(cadenza.Field(result.Pubs[0], "c").GetBits()))
	return nil
}

// run submits a job to the session and waits for its result.
func run(ctx context.Context, client *cadenza.Client, session string, program *cadenzav1.Program) (*cadenzav1.JobResult, error) {
	submitted, err := client.Jobs.SubmitJob(ctx, &cadenzav1.SubmitJobRequest{
		Job: &cadenzav1.JobSpec{SessionId: session, Program: program},
	})
	if err != nil {
		return nil, err
	}
	job := submitted.Job
	var result *cadenzav1.JobResult
	err = client.Watch(ctx, job.JobId, func(event *cadenzav1.Event) bool {
		switch change := event.Change.(type) {
		case *cadenzav1.Event_JobSnapshot:
			job, result = change.JobSnapshot.Job, change.JobSnapshot.Result
		case *cadenzav1.Event_JobEnded:
			job, result = change.JobEnded.Job, change.JobEnded.Result
		}
		return true
	})
	if err == nil && job.State != cadenzav1.JobState_JOB_STATE_SUCCEEDED {
		err = fmt.Errorf("job %s: %s: %s", job.JobId, job.Reason, job.Detail)
	}
	if err == nil && result == nil { // too large to ride along
		var got *cadenzav1.GetJobResultResponse
		got, err = client.Jobs.GetJobResult(ctx, &cadenzav1.GetJobResultRequest{JobId: job.JobId})
		result = got.GetResult()
	}
	return result, err
}
