// Command libcni asks the CNI library to do what a container runtime has it do: one call, its outcome as JSON.
//
//	libcni VERB CONFLIST [CONTAINER NETNS IFNAME]
//	libcni gc CONFLIST [CONTAINER/IFNAME]...
//
// VERB is add, check, del, validate, gc or status; the last two need libcni 1.2. CNI_PATH has the plugins' folders,
// CNI_CACHE where libcni keeps its results, CNI_CAPABILITIES holds what goes into runtimeConfig, as JSON.
//
// Success prints {} or, after add, what libcni made of the plugin's answer; a failure prints {"code", "msg",
// "details"} and exits with 1. The same source builds with libcni 1.1 and with libcni 1.3: go.mod beside it says which.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

const patience = time.Minute

// added is the result of add: as a Go type of the version that the plugin answered in, and converted to the newest.
type added struct {
	Type    string          `json:"type"`
	Version string          `json:"version"`
	Result  types.Result    `json:"result"`
	Newest  *current.Result `json:"newest"`
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := perform(ctx, os.Args[1:])
	if err != nil {
		answer = explain(err)
	}
	if printed := json.NewEncoder(os.Stdout).Encode(answer); printed != nil || err != nil {
		os.Exit(1)
	}
}

func perform(ctx context.Context, words []string) (any, error) {
	if len(words) < 2 {
		return nil, errors.New("usage: libcni VERB CONFLIST [CONTAINER NETNS IFNAME]")
	}
	verb, rest := words[0], words[2:]
	network, err := libcni.ConfListFromFile(words[1])
	if err != nil {
		return nil, err
	}
	cni := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(os.Getenv("CNI_PATH")), os.Getenv("CNI_CACHE"), nil)
	switch verb {
	case "validate":
		_, err := cni.ValidateNetworkList(ctx, network)
		return struct{}{}, err
	case "gc", "status":
		return struct{}{}, askWithoutContainer(ctx, cni, network, verb, rest)
	}
	if len(rest) != 3 {
		return nil, fmt.Errorf("%s needs CONTAINER, NETNS and IFNAME", verb)
	}
	attachment := &libcni.RuntimeConf{ContainerID: rest[0], NetNS: rest[1], IfName: rest[2]}
	attachment.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", rest[0][:8]}}
	if wishes := os.Getenv("CNI_CAPABILITIES"); wishes != "" {
		if err := json.Unmarshal([]byte(wishes), &attachment.CapabilityArgs); err != nil {
			return nil, err
		}
	}
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(ctx, network, attachment)
		if err != nil {
			return nil, err
		}
		newest, err := current.NewResultFromResult(result)
		return added{fmt.Sprintf("%T", result), result.Version(), result, newest}, err
	case "check":
		return struct{}{}, cni.CheckNetworkList(ctx, network, attachment)
	case "del":
		return struct{}{}, cni.DelNetworkList(ctx, network, attachment)
	}
	return nil, fmt.Errorf("no such verb: %s", verb)
}

func explain(err error) any {
	var ours *types.Error
	if errors.As(err, &ours) {
		return ours
	}
	return &types.Error{Msg: err.Error()}
}
