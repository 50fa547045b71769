// A stand-in for AWS's network policy agent, in the network namespace that it is started in: with the VPC CNI's own
// gRPC stubs, and the netlink library by which the agent finds links. It attaches a qdisc, as the agent does before its
// eBPF programs, and filters nothing.
//
// usage: policy_agent FOLDER
//
// First it asks at FOLDER/ipamd.sock, as the agent does, and writes the answer as a line ("mode standard multi false
// node 10.0.0.4"); then it listens at FOLDER/npa.sock and writes a line for each call. It ends with its standard input.
package main

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/aws/amazon-vpc-cni-k8s/rpc"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

// retries is the agent's: it waits for the socket, and asks again where that can help.
const retries = `{"methodConfig": [{"name": [{"service": "rpc.ConfigServerBackend"}], "waitForReady": true, "retryPolicy": {
  "MaxAttempts": 5, "InitialBackoff": "0.5s", "MaxBackoff": "10s", "BackoffMultiplier": 1.1,
  "RetryableStatusCodes": ["UNAVAILABLE", "ABORTED", "UNKNOWN"]}}]}`

type agent struct {
	rpc.UnimplementedNPBackendServer
	mutex sync.Mutex
	known map[string]int // the link's index by the pod's name
}

func (a *agent) EnforceNpToPod(_ context.Context, request *rpc.EnforceNpRequest) (*rpc.EnforceNpReply, error) {
	pod := request.K8S_POD_NAMESPACE + "." + request.K8S_POD_NAME
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if _, known := a.known[pod]; !known {
		sum := sha1.Sum([]byte(pod))
		link, err := netlink.LinkByName("eni" + hex.EncodeToString(sum[:])[:11])
		if err != nil {
			return nil, err
		}
		index := link.Attrs().Index
		qdisc := &netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			},
			QdiscType: "clsact",
		}
		if err := netlink.QdiscAdd(qdisc); err != nil {
			return nil, err
		}
		a.known[pod] = index
		fmt.Printf("enforce %s %s %d %s\n", pod, request.NETWORK_POLICY_MODE, request.InterfaceCount, link.Attrs().Name)
	}
	return &rpc.EnforceNpReply{Success: true}, nil
}

func (a *agent) DeletePodNp(_ context.Context, request *rpc.DeleteNpRequest) (*rpc.DeleteNpReply, error) {
	pod := request.K8S_POD_NAMESPACE + "." + request.K8S_POD_NAME
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if _, known := a.known[pod]; known {
		delete(a.known, pod)
		fmt.Printf("delete %s\n", pod)
	}
	return &rpc.DeleteNpReply{Success: true}, nil
}

func main() {
	folder := os.Args[1]
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	connection, err := grpc.NewClient("unix://"+folder+"/ipamd.sock", grpc.WithDefaultServiceConfig(retries),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	reply, err := rpc.NewConfigServerBackendClient(connection).GetNetworkPolicyConfigs(ctx, &emptypb.Empty{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("mode %s multi %t node %s\n", reply.NetworkPolicyMode, reply.MultiNICEnabled, reply.NodeIPv4)

	listener, err := net.Listen("unix", folder+"/npa.sock")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	rpc.RegisterNPBackendServer(server, &agent{known: map[string]int{}})
	status := health.NewServer()
	status.SetServingStatus("grpc.health.v1.np-agent", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, status)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		server.Stop()
	}()
	fmt.Println("ready")
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
