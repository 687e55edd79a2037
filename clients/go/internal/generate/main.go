// Generate writes the stubs of ../../proto into ./v1, with nothing but Go: the contract is compiled by protocompile, and
// the plugins are the tools that go.mod pins. `go generate` in this module runs it.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

const (
	contract = "../../proto"
	module   = "cadenza"
)

var plugins = []string{"protoc-gen-go", "protoc-gen-go-grpc"}

func main() {
	found, err := filepath.Glob(filepath.Join(contract, "cadenza/v1/*.proto"))
	if err != nil || len(found) == 0 {
		log.Fatalf("there is no contract in %s: run `go generate` in clients/go of a clone", contract)
	}
	var names []string
	for _, file := range found {
		names = append(names, "cadenza/v1/"+filepath.Base(file))
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{contract}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments
	}
	files, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		log.Fatal(err)
	}
	var descriptors []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) { // what a file imports comes before it
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		descriptors = append(descriptors, protoutil.ProtoFromFileDescriptor(file))
	}
	for _, file := range files {
		add(file)
	}
	for _, plugin := range plugins {
		if err := run(plugin, &pluginpb.CodeGeneratorRequest{
			FileToGenerate: names,
			Parameter:      proto.String("module=" + module),
			ProtoFile:      descriptors,
		}); err != nil {
			log.Fatalf("%s: %v", plugin, err)
		}
	}
}

func run(plugin string, request *pluginpb.CodeGeneratorRequest) error {
	input, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	command := exec.Command("go", "tool", plugin)
	command.Stdin, command.Stderr = bytes.NewReader(input), os.Stderr
	output, err := command.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(output, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, file := range response.File {
		if err := os.MkdirAll(filepath.Dir(file.GetName()), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file.GetName(), []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
