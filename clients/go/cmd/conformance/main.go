// Conformance plays the checks of tests/conformance and prints one line of JSON for each; see checks.yaml there.
//
//	conformance CHECKS.json
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"cadenza"
	cadenzav1 "cadenza/v1"
)

const (
	callSecondsMax = 30.0
	tolerance      = 1e-6
)

type object = map[string]any

var codeNames = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
	"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	var plan struct {
		Variables object
		Checks    []struct {
			Name  string
			User  *string
			Steps []object
		}
	}
	if err := json.Unmarshal(text, &plan); err != nil {
		panic(err)
	}
	connections, failed := map[string]*cadenza.Client{}, false
	for _, check := range plan.Checks {
		user := "${run}/ann"
		if check.User != nil {
			user = *check.User
		}
		p := &player{variables: object{}, connections: connections, streams: map[string]*openStream{}}
		for name, value := range plan.Variables {
			p.variables[name] = value
		}
		began := time.Now()
		err := p.play(check.Steps, user)
		line := object{"check": check.Name, "passed": err == nil, "ms": time.Since(began).Milliseconds(), "problem": ""}
		if err != nil {
			line["problem"], failed = err.Error(), true
		}
		printed, _ := json.Marshal(line)
		fmt.Println(string(printed))
	}
	if failed {
		os.Exit(1)
	}
}

// player plays one check.
type player struct {
	variables   object
	user        string
	connections map[string]*cadenza.Client
	streams     map[string]*openStream
}

type openStream struct {
	grpc.ClientStream
	output protoreflect.MessageType
	cancel context.CancelFunc
}

func (p *player) play(steps []object, user string) (err error) {
	p.user = p.fill(user).(string)
	defer func() {
		for _, stream := range p.streams {
			stream.cancel()
		}
	}()
	for number, raw := range steps {
		step := p.fill(raw).(object)
		if err := p.step(step); err != nil {
			return fmt.Errorf("step %d (%v): %w", number+1, step["call"], err)
		}
	}
	return nil
}

func (p *player) step(step object) error {
	answer, err := p.perform(step)
	refused := step["refused"]
	if err != nil {
		if _, ok := status.FromError(err); !ok {
			return err
		}
		if refused == nil {
			return fmt.Errorf("it was refused: %w", err)
		}
		return differ(refused, describe(err), "refusal")
	}
	if refused != nil {
		return fmt.Errorf("it was not refused, but answered %s", show(answer))
	}
	if expected, ok := step["expect"]; ok {
		if err := differ(expected, answer, "answer"); err != nil {
			return err
		}
	}
	saved, _ := step["save"].(object)
	for name, path := range saved {
		if p.variables[name], err = find(path.(string), answer); err != nil {
			return err
		}
	}
	return nil
}

func describe(err error) object {
	reason, about := cadenza.Reason(err)
	described := object{"code": codeNames[status.Code(err)], "metadata": object{}}
	if reason != "" {
		described["reason"] = reason
	}
	for key, value := range about {
		described["metadata"].(object)[key] = value
	}
	return described
}

func (p *player) perform(step object) (any, error) {
	if name, ok := step["cancel"].(string); ok {
		stream := p.streams[name]
		stream.cancel()
		for {
			if _, err := receive(stream); status.Code(err) == codes.Canceled {
				return object{}, nil
			} else if err != nil {
				return nil, fmt.Errorf("the cancelled stream ended with %s", err.Error())
			}
		}
	}
	if name, ok := step["read"].(string); ok {
		return read(p.streams[name], step["until"])
	}
	service, name, _ := strings.Cut(step["call"].(string), "/")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("cadenza.v1." + service))
	if err != nil {
		return nil, err
	}
	method := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name))
	request, err := parse(method.Input(), step["request"])
	if err != nil {
		return nil, err
	}
	output, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		return nil, err
	}
	client, err := p.connect(step)
	if err != nil {
		return nil, err
	}
	seconds := callSecondsMax
	if given, ok := step["timeout_s"].(float64); ok {
		seconds = given
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds*float64(time.Second)))
	user := p.user
	if given, ok := step["user"].(string); ok {
		user = given
	}
	if user != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "cadenza-user", user)
	}
	more, _ := step["metadata"].(object)
	for key, value := range more {
		ctx = metadata.AppendToOutgoingContext(ctx, key, value.(string))
	}
	path := "/cadenza.v1." + step["call"].(string)
	if step["assemble"] == true {
		defer cancel()
		return assemble(ctx, client, request.(*cadenzav1.StreamJobResultRequest))
	}
	if !method.IsStreamingServer() {
		defer cancel()
		reply := output.New().Interface()
		if err := client.Conn.Invoke(ctx, path, request, reply); err != nil {
			return nil, err
		}
		return toJSON(reply)
	}
	desc := &grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: method.IsStreamingClient()}
	opened, err := client.Conn.NewStream(ctx, desc, path)
	if err != nil {
		cancel()
		return nil, err
	}
	requests := []proto.Message{request}
	if method.IsStreamingClient() {
		requests = nil
		for _, one := range step["requests"].([]any) {
			message, err := parse(method.Input(), one)
			if err != nil {
				cancel()
				return nil, err
			}
			requests = append(requests, message)
		}
	}
	for _, one := range requests {
		if err := opened.SendMsg(one); err != nil && !errors.Is(err, io.EOF) { // EOF: RecvMsg has the status
			cancel()
			return nil, err
		}
	}
	_ = opened.CloseSend()
	stream := &openStream{opened, output, cancel}
	if name, ok := step["stream"].(string); ok {
		p.streams[name] = stream
	} else {
		defer cancel()
	}
	return read(stream, step["until"])
}

// connect gives the client of the step's server.
func (p *player) connect(step object) (*cadenza.Client, error) {
	target, options := p.variables["target"].(string), cadenza.Options{}
	if step["tls"] == true {
		target, options.CA = p.variables["tls_target"].(string), p.variables["tls_ca"].(string)
	} else if server, ok := step["server"].(string); ok {
		target = p.variables[server+"_target"].(string)
	}
	if client, ok := p.connections[target]; ok {
		return client, nil
	}
	client, err := cadenza.Dial(target, options)
	p.connections[target] = client
	return client, err
}

// read reads until a message is like until; without it, to the end.
func read(stream *openStream, until any) (any, error) {
	messages := []any{}
	for {
		message, err := receive(stream)
		if errors.Is(err, io.EOF) && until == nil {
			return object{"messages": messages}, nil
		} else if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the stream ended without the message to stop at, after %s", show(messages))
		} else if err != nil {
			return nil, err
		}
		messages = append(messages, message)
		if until != nil && differ(until, message, "") == nil {
			return object{"messages": messages}, nil
		}
	}
}

func receive(stream *openStream) (any, error) {
	message := stream.output.New().Interface()
	if err := stream.RecvMsg(message); err != nil {
		return nil, err
	}
	return toJSON(message)
}

// assemble reads a result in two streams, the second beginning where the first was broken off after one piece.
func assemble(ctx context.Context, client *cadenza.Client, request *cadenzav1.StreamJobResultRequest) (any, error) {
	broken, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Jobs.StreamJobResult(broken, request)
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	cancel()
	data, pieces := first.Data, 1
	request.Offset = int64(len(data))
	if stream, err = client.Jobs.StreamJobResult(ctx, request); err != nil {
		return nil, err
	}
	for ; ; pieces++ {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if piece.Offset != int64(len(data)) {
			return nil, fmt.Errorf("a piece begins at %d, not at %d", piece.Offset, len(data))
		}
		data = append(data, piece.Data...)
	}
	if int64(len(data)) != first.TotalBytes {
		return nil, fmt.Errorf("the pieces have %d bytes together, not %d", len(data), first.TotalBytes)
	}
	var result cadenzav1.JobResult
	if err := proto.Unmarshal(data, &result); err != nil {
		return nil, err
	}
	shown, err := toJSON(&result)
	return object{"pieces": float64(pieces), "result": shown}, err
}

func parse(descriptor protoreflect.MessageDescriptor, value any) (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		kind = dynamicpb.NewMessageType(descriptor)
	}
	message := kind.New().Interface()
	if value == nil {
		return message, nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return message, protojson.Unmarshal(text, message)
}

func toJSON(message proto.Message) (value any, err error) {
	text, err := protojson.Marshal(message)
	if err == nil {
		err = json.Unmarshal(text, &value)
	}
	return value, err
}

// fill replaces ${name}; a text that is nothing else becomes the variable, whatever its type.
func (p *player) fill(value any) any {
	switch value := value.(type) {
	case string:
		if strings.HasPrefix(value, "${") && strings.Index(value, "}") == len(value)-1 {
			return p.variables[value[2:len(value)-1]]
		}
		for name, filling := range p.variables {
			if text, ok := filling.(string); ok {
				value = strings.ReplaceAll(value, "${"+name+"}", text)
			}
		}
		return value
	case []any:
		filled := make([]any, len(value))
		for i, item := range value {
			filled[i] = p.fill(item)
		}
		return filled
	case object:
		if repeat, ok := value["$repeat"].([]any); ok {
			return strings.Repeat(repeat[0].(string), int(repeat[1].(float64)))
		}
		filled := object{}
		for key, item := range value {
			filled[key] = p.fill(item)
		}
		return filled
	}
	return value
}

func find(path string, value any) (any, error) {
	for part := range strings.SplitSeq(path, ".") {
		var found any
		switch value := value.(type) {
		case object:
			found = value[part]
		case []any:
			index, _ := strconv.Atoi(part)
			if index < 0 {
				index += len(value)
			}
			if index < len(value) {
				found = value[index]
			}
		}
		if found == nil {
			return nil, fmt.Errorf("there is nothing at %s to save: %s", path, show(value))
		}
		value = found
	}
	return value, nil
}

// differ says where actual is not what is expected; nil: it is.
func differ(expected, actual any, place string) error {
	switch expected := expected.(type) {
	case object:
		matchers := 0
		for name, argument := range expected {
			if strings.HasPrefix(name, "$") {
				matchers++
				if !matches(name, argument, actual) {
					return fmt.Errorf("%s: %s is not %s %s", place, show(actual), name, show(argument))
				}
			}
		}
		if matchers > 0 {
			return nil
		}
		found, ok := actual.(object)
		if !ok {
			return fmt.Errorf("%s: %s is no object", place, show(actual))
		}
		for key, value := range expected {
			if err := differ(value, found[key], place+"."+key); err != nil {
				return err
			}
		}
		return nil
	case []any:
		found, ok := actual.([]any)
		if !ok || len(found) != len(expected) {
			return fmt.Errorf("%s: %s has not %d elements", place, show(actual), len(expected))
		}
		for i, value := range expected {
			if err := differ(value, found[i], fmt.Sprintf("%s.%d", place, i)); err != nil {
				return err
			}
		}
		return nil
	}
	if expected != actual {
		return fmt.Errorf("%s: %s is not %s", place, show(actual), show(expected))
	}
	return nil
}

func matches(name string, argument, actual any) bool {
	items, _ := actual.([]any)
	text, _ := actual.(string)
	data, _ := base64.StdEncoding.DecodeString(text)
	like := func(item any) bool { return differ(argument, item, "") == nil }
	switch name {
	case "$present":
		return (actual != nil) == argument
	case "$length":
		return float64(len(items)) == argument
	case "$min":
		number, ok := actual.(float64)
		if !ok {
			var err error
			number, err = strconv.ParseFloat(text, 64)
			ok = err == nil
		}
		return ok && number >= argument.(float64)
	case "$in":
		return slices.Contains(argument.([]any), actual)
	case "$first":
		return len(items) > 0 && like(items[0])
	case "$last":
		return len(items) > 0 && like(items[len(items)-1])
	case "$contains":
		return slices.ContainsFunc(items, like)
	case "$bytes":
		return float64(len(data)) == argument
	case "$bytes_in":
		return !slices.ContainsFunc(data, func(b byte) bool { return !slices.Contains(argument.([]any), any(float64(b))) })
	case "$float64s":
		expected := argument.([]any)
		values := make([]float64, len(data)/8)
		if binary.Read(bytes.NewReader(data), binary.LittleEndian, values) != nil || len(values) != len(expected) {
			return false
		}
		for i, value := range values {
			if math.Abs(value-expected[i].(float64)) >= tolerance {
				return false
			}
		}
		return true
	}
	panic("there is no matcher " + name)
}

func show(value any) string {
	text, _ := json.Marshal(value)
	return string(text[:min(len(text), 300)])
}
