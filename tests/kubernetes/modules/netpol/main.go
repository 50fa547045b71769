// The controller of network policies from kube-router, without its router and its service proxy: the agent that
// enforces policies on one node, on the pods of another network plugin.
package main

import (
	"context"
	"flag"
	"os/signal"
	"sync"
	"syscall"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the file with the API server's address; empty: that of the pod")
	node := flag.String("hostname-override", "", "the name of this node in the cluster")
	services := flag.String("service-cluster-ip-range", "172.20.0.0/16", "the addresses of the cluster's Services")
	klog.InitFlags(nil)
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if err := run(ctx, *kubeconfig, settings(*node, *services)); err != nil {
		klog.Fatal(err)
	}
}

func settings(node, services string) *options.KubeRouterConfig {
	made := options.NewKubeRouterConfig()
	made.HostnameOverride = node
	made.ClusterIPCIDRs = []string{services}
	made.EnableIPv4, made.EnableIPv6 = true, false
	made.RunFirewall, made.RunRouter, made.RunServiceProxy = true, false, false
	return made
}

func run(ctx context.Context, kubeconfig string, settings *options.KubeRouterConfig) error {
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	tables, sets, err := netpol.NewIPTablesHandlers(settings)
	if err != nil {
		return err
	}
	var lock sync.Mutex
	controller, err := netpol.NewNetworkPolicyController(client, settings, pods, policies, namespaces, &lock, tables, sets)
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods:       controller.PodEventHandler,
		namespaces: controller.NamespaceEventHandler,
		policies:   controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	// The controller sends a heartbeat after each round and would block if nobody took it.
	heartbeats := make(chan *healthcheck.ControllerHeartbeat)
	go func() {
		for range heartbeats {
		}
	}()
	var group sync.WaitGroup
	group.Add(1)
	controller.Run(heartbeats, ctx.Done(), &group)
	return nil
}
