package main

import (
	"context"
	"fmt"

	"github.com/containernetworking/cni/libcni"
)

func askWithoutContainer(
	_ context.Context, _ *libcni.CNIConfig, _ *libcni.NetworkConfigList, verb string, _ []string,
) error {
	return fmt.Errorf("%s came with libcni 1.2", verb)
}
