// Package cadenza is a client of the Cadenza scheduling server: connections, refusals by reason, tensors, results and
// watches that go on after a broken stream. Messages and service stubs are in cadenza/v1, generated from the contract.
package cadenza

//go:generate go run ./internal/generate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	cadenzav1 "cadenza/v1"
)

// Domain of the server's google.rpc.ErrorInfo.
const Domain = "cadenza"

// Options say who calls, and how the server is reached.
type Options struct {
	User  string // path in the share tree, such as lab/alice: for servers that trust names
	Token string // for servers with tokens; it says who calls
	CA    string // PEM file of the authority that signed the server's certificate; empty: no TLS
}

// Client holds one connection and the stubs of all services.
type Client struct {
	Conn         *grpc.ClientConn
	Server       cadenzav1.ServerServiceClient
	Sessions     cadenzav1.SessionServiceClient
	Jobs         cadenzav1.JobServiceClient
	Devices      cadenzav1.DeviceServiceClient
	Reservations cadenzav1.ReservationServiceClient
	Shares       cadenzav1.ShareServiceClient
}

// Dial makes a client of the server at target, `HOST:PORT`. The connection is made with the first call.
func Dial(target string, options Options) (*Client, error) {
	secure := insecure.NewCredentials()
	if options.CA != "" {
		pem, err := os.ReadFile(options.CA)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", options.CA)
		}
		secure = credentials.NewTLS(&tls.Config{RootCAs: pool})
	}
	var pairs []string
	switch {
	case options.Token != "":
		pairs = []string{"authorization", "Bearer " + options.Token}
	case options.User != "":
		pairs = []string{"cadenza-user", options.User}
	}
	identify := func(ctx context.Context) context.Context { return metadata.AppendToOutgoingContext(ctx, pairs...) }
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(secure),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)), // results may have more than 4 MiB
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			return invoke(identify(ctx), method, request, reply, conn, options...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(identify(ctx), desc, conn, method, options...)
		}),
	)
	if err != nil {
		return nil, err
	}
	return &Client{
		Conn:         conn,
		Server:       cadenzav1.NewServerServiceClient(conn),
		Sessions:     cadenzav1.NewSessionServiceClient(conn),
		Jobs:         cadenzav1.NewJobServiceClient(conn),
		Devices:      cadenzav1.NewDeviceServiceClient(conn),
		Reservations: cadenzav1.NewReservationServiceClient(conn),
		Shares:       cadenzav1.NewShareServiceClient(conn),
	}, nil
}

// Close closes the connection; what is under way ends.
func (c *Client) Close() error { return c.Conn.Close() }

// Reason is why a call was refused: a name of cadenzav1.ErrorReason without its prefix, such as UNKNOWN_DEVICE, and what
// it is about (`field`, `job_id`, ...). It is empty if err is no refusal of the server.
func Reason(err error) (string, map[string]string) {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == Domain {
			return info.Reason, info.Metadata
		}
	}
	return "", nil
}

// Watch calls see for every change of a job until the job is final, or see returns false. A stream that breaks goes on
// after the last event seen.
func (c *Client) Watch(ctx context.Context, jobID string, see func(*cadenzav1.Event) bool) error {
	request := &cadenzav1.WatchJobRequest{JobId: jobID, IncludeResults: true}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		stream, err := c.Jobs.WatchJob(ctx, request)
		for err == nil {
			var message *cadenzav1.WatchJobResponse
			if message, err = stream.Recv(); err == nil {
				request.ResumeAfter = &message.Event.EventNumber
				if !see(message.Event) {
					return nil
				}
			}
		}
		reason, _ := Reason(err)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case reason == "RESUME_TOO_OLD" && request.ResumeAfter != nil:
			request.ResumeAfter = nil // begin again with a snapshot
		case reason == "WATCH_TOO_SLOW":
		case status.Code(err) == codes.Unavailable && request.ResumeAfter != nil:
			select { // the server restarts, perhaps
			case <-time.After(time.Second):
			case <-ctx.Done():
				return err
			}
		default:
			return err
		}
	}
}

// Tensor is an array of doubles as the contract carries it: C order, little-endian.
func Tensor(shape []int64, values ...float64) *cadenzav1.Tensor {
	data := make([]byte, 0, 8*len(values))
	for _, value := range values {
		data = binary.LittleEndian.AppendUint64(data, math.Float64bits(value))
	}
	return &cadenzav1.Tensor{Dtype: cadenzav1.Dtype_DTYPE_FLOAT64, Shape: shape, Data: data}
}

// Floats are the elements of a tensor of doubles.
func Floats(tensor *cadenzav1.Tensor) []float64 {
	values := make([]float64, len(tensor.GetData())/8)
	for i := range values {
		values[i] = math.Float64frombits(binary.LittleEndian.Uint64(tensor.Data[8*i:]))
	}
	return values
}

// Counts says how often each value of a register was measured; bit 0 is the right-most character.
func Counts(bits *cadenzav1.BitArray) map[string]int {
	width, counts := int(bits.GetNumBits()), map[string]int{}
	size := (width + 7) / 8
	for at := 0; at+size <= len(bits.GetData()); at += size {
		word := make([]byte, width)
		for i := range word {
			bit := width - 1 - i
			word[i] = '0' + bits.Data[at+size-1-bit/8]>>(bit%8)&1
		}
		counts[string(word)]++
	}
	return counts
}

// Field is the named array of a PUB's result: a register, `evs` or `stds`; nil if there is none.
func Field(result *cadenzav1.PubResult, name string) *cadenzav1.DataField {
	for _, field := range result.GetFields() {
		if field.Name == name {
			return field
		}
	}
	return nil
}
