// A gRPC server for tests of the plugin's client: grpc-go on a Unix socket, messages as plain bytes.
//
// usage: go_grpc SOCKET [-windows BYTES] [-keepalive] [-compress]
//
// The method says what happens; see `answer`. Commands come line by line on standard input ("graceful", "stop");
// "ready", and "started" for each call that waits, go to standard output. The server ends with its standard input.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// plain hands messages through as they are.
type plain struct{}

func (plain) Name() string { return "proto" }

func (plain) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (plain) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = bytes.Clone(data)
	return nil
}

func answer(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	var request []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	reply := request
	switch path.Base(method) {
	case "echo":
	case "length":
		reply = []byte(strconv.Itoa(len(request)))
	case "big": // a reply of so many bytes
		size, _ := strconv.Atoi(string(request))
		reply = bytes.Repeat([]byte("x"), size)
	case "metadata": // headers and trailers of so many bytes, in values of 1000
		size, _ := strconv.Atoi(string(request))
		many := metadata.MD{}
		for number := 0; number*1000 < size; number++ {
			many.Set(fmt.Sprintf("many-%d", number), strings.Repeat("v", 1000))
		}
		if err := stream.SetHeader(many); err != nil {
			return err
		}
		stream.SetTrailer(many)
	case "fail": // nothing but trailers: "code message"
		return fail(stream, request)
	case "fail_late": // after the headers
		if err := stream.SendHeader(metadata.Pairs("early", "1")); err != nil {
			return err
		}
		return fail(stream, request)
	case "fail_after_reply":
		if err := stream.SendMsg(&reply); err != nil {
			return err
		}
		return fail(stream, request)
	case "deadline": // what is left of the call's time, in milliseconds
		until, _ := stream.Context().Deadline()
		reply = []byte(strconv.FormatInt(time.Until(until).Milliseconds(), 10))
	case "wait": // so many milliseconds; none: until the call is given up
		fmt.Println("started")
		milliseconds, err := strconv.Atoi(string(request))
		if err != nil {
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		time.Sleep(time.Duration(milliseconds) * time.Millisecond)
	default:
		return status.Error(codes.Unimplemented, "no such method")
	}
	return stream.SendMsg(&reply)
}

func fail(stream grpc.ServerStream, request []byte) error {
	number, message, _ := strings.Cut(string(request), " ")
	code, _ := strconv.Atoi(number)
	stream.SetTrailer(metadata.Pairs("ipamd-cni-error", `{"code":11}`, "more", "a", "more", "b", "raw-bin", "\x00\xff"))
	return status.Error(codes.Code(code), message)
}

func main() {
	windows := flag.Int("windows", 0, "bytes that a client may send ahead")
	pings := flag.Bool("keepalive", false, "ping a client that is silent for a second")
	compress := flag.Bool("compress", false, "compress replies whether or not the client can read them")
	socket := os.Args[1]
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	options := []grpc.ServerOption{grpc.ForceServerCodec(plain{}), grpc.UnknownServiceHandler(answer)}
	if *windows > 0 {
		options = append(options,
			grpc.StaticStreamWindowSize(int32(*windows)), grpc.StaticConnWindowSize(int32(*windows)))
	}
	if *pings {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Second, Timeout: 300 * time.Millisecond,
		}))
	}
	if *compress {
		options = append(options, grpc.RPCCompressor(grpc.NewGZIPCompressor())) //nolint:staticcheck // forces it
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(options...)
	go func() {
		commands := bufio.NewScanner(os.Stdin)
		for commands.Scan() {
			switch commands.Text() {
			case "graceful":
				go server.GracefulStop()
			case "stop":
				server.Stop()
			}
		}
		os.Exit(0)
	}()
	fmt.Println("ready")
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
	fmt.Println("stopped")
	select {}
}
