package main

import (
	"context"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func askWithoutContainer(
	ctx context.Context, cni *libcni.CNIConfig, network *libcni.NetworkConfigList, verb string, valid []string,
) error {
	if verb == "status" {
		return cni.GetStatusNetworkList(ctx, network)
	}
	wanted := libcni.GCArgs{}
	for _, one := range valid {
		container, ifname, _ := strings.Cut(one, "/")
		wanted.ValidAttachments = append(wanted.ValidAttachments, types.GCAttachment{ContainerID: container, IfName: ifname})
	}
	return cni.GCNetworkList(ctx, network, &wanted)
}
