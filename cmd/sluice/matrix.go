package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/watch/manifests"
)

// maxMatrixPods bounds the number of pods. The number of cells is its square, and users
// cannot read more.
const maxMatrixPods = 2000

type matrixOptions struct {
	input
	format     string
	ports      []string
	namespaces []string
}

func matrixCommand(e env) *cobra.Command {
	opts := matrixOptions{format: "text"}
	cmd := &cobra.Command{
		Use:   "matrix -f DIR",
		Short: "Show which pods can reach which, on which ports",
		Long: `Matrix shows which pods can reach which others, on which ports, by the same
decision that judges packets.

For each pod it decides about the ports that its containers declare, and about all
others together. With --port it decides only about those ports, for every pod.

In the text table, a cell lists the open ports: "all", "-" for none, or a list, in which
TCP is the default protocol. The HTML page is a single file that needs no network; point
at a cell for the reasons.

Objects of other kinds that may change what is allowed, such as policies of Calico or
Cilium, are listed ("not read"). The exit status is 2 if parts of the manifests cannot
be understood.`,
		Example: `  sluice matrix -f ./policies
  sluice matrix -f ./policies --namespace shop --port 6379 --port 53/udp
  sluice matrix -f ./policies -o html > matrix.html`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runMatrix(cmd.Context(), e, opts) },
	}
	flags := cmd.Flags()
	addInputFlags(flags, &opts.input)
	flags.VarP(newChoiceFlag(&opts.format, "text", "json", "html"), "output", "o", "text, json or html")
	flags.StringSliceVarP(&opts.ports, "port", "p", nil, "decide about this `PORT` of every pod, such as 80 or 53/udp (repeatable)")
	flags.StringSliceVarP(&opts.namespaces, "namespace", "n", nil, "show only the pods of this `NAMESPACE` (repeatable)")
	return cmd
}

func runMatrix(ctx context.Context, e env, opts matrixOptions) error {
	write := map[string]func(io.Writer, *matrix) error{
		"text": writeMatrixText, "json": writeMatrixJSON, "html": writeMatrixHTML,
	}[opts.format]
	asked, err := parsePorts(opts.ports)
	if err != nil {
		return err
	}
	from, err := readInput(ctx, nil, opts.input)
	if err != nil {
		return err
	}
	m := &matrix{NotRead: from.NotRead, snapshot: from.snapshot, policies: policyPorts(from.Policies), spans: make(map[spanKey][]portSpan)}
	if err := m.addPods(e, from.Pods, opts.namespaces, asked); err != nil {
		return err
	}
	m.fill(len(asked) > 0)
	if err := write(e.stdout, m); err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	return from.report(e, "the matrix shows")
}

// parsePorts parses the values of --port.
func parsePorts(texts []string) ([]matrixPort, error) {
	var ports []matrixPort
	for _, text := range texts {
		number, proto, given := strings.Cut(text, "/")
		if !given {
			proto = "TCP"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		p, known := filter.ParseProtocol(proto)
		if err != nil || n == 0 || !known || !p.HasPorts() {
			return nil, fmt.Errorf("--port %s: give a number from 1 to 65535, followed by /udp or /sctp if it is not TCP", text)
		}
		port := matrixPort{Port: uint16(n), Protocol: p.String(), proto: p}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

var protocols = map[string]filter.Protocol{"TCP": filter.TCP, "UDP": filter.UDP, "SCTP": filter.SCTP}

// matrix is which pods can reach which.
type matrix struct {
	Pods  []*matrixPod  `json:"pods"`
	Flows []*matrixCell `json:"flows"` // from each pod to each, in the order of pods
	// Objects that were not read and may change what is allowed.
	NotRead []manifests.NotRead `json:"notRead,omitempty"`

	snapshot *policy.Snapshot
	policies map[string][2][]portSpan // ports in the rules of each policy
	spans    map[spanKey][]portSpan
}

// matrixPort is a port to decide about.
type matrixPort struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Name     string `json:"name,omitempty"`

	proto filter.Protocol
}

// String returns the port in its short form, such as "80" or "53/UDP".
func (p matrixPort) String() string {
	if p.proto == filter.TCP {
		return strconv.Itoa(int(p.Port))
	}
	return strconv.Itoa(int(p.Port)) + "/" + p.Protocol
}

// The verdicts of a cell about a port. Mixed is allowed for one address family and denied
// for the other; for all other ports together, it is allowed for some.
const (
	allowed = "allow"
	denied  = "deny"
	mixed   = "mixed"
)

// matrixAnswer is the verdict about one port of a destination, or about all others.
type matrixAnswer struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	Why     string `json:"why"` // the policies and rules that decide
}

// matrixCell is the answer for one pair of pods.
type matrixCell struct {
	From  string           `json:"from"`
	To    string           `json:"to"`
	Ports []matrixPortCell `json:"ports"`
	Other *matrixOther     `json:"other,omitempty"` // all ports outside of Ports
}

type matrixPortCell struct {
	matrixPort
	matrixAnswer
}

type matrixOther struct {
	matrixAnswer
	// If the verdicts differ: the open ports, and those that are open for one address family
	// only, as in "TCP 8000-8100", "UDP", "ICMP". The rest is closed.
	Allowed   []string `json:"allowed,omitempty"`
	OneFamily []string `json:"oneFamily,omitempty"`
}

func writeMatrixJSON(out io.Writer, m *matrix) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(m)
}
