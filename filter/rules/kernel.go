package rules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// lockWait is how long a command waits for another that holds the lock of the
// legacy backend. Kubernetes components hold it for tenths of a second.
const lockWait = 5 * time.Second

// ErrPrivilege says that the kernel refused because of who we are.
var ErrPrivilege = errors.New("no privilege to change the node's packet filter: run as root, or with the capabilities NET_ADMIN and NET_RAW")

// kernelTable is the kernel's table, behind the iptables commands.
type kernelTable struct {
	family  Family
	name    string
	backend Backend
	reader  *iptables.IPTables
	restore string   // path of iptables-restore
	wait    []string // its arguments that make it wait for the lock
}

// openTable finds out what the command can do.
func openTable(f Family, t tool) (Table, error) {
	protocol := iptables.ProtocolIPv4
	if f == IPv6 {
		protocol = iptables.ProtocolIPv6
	}
	reader, err := iptables.New(iptables.IPFamily(protocol), iptables.Path(t.path), iptables.Timeout(int(lockWait/time.Second)))
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", t.path, err)
	}
	restore, err := lookPath(t.path + "-restore")
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", t.path, err)
	}
	k := &kernelTable{family: f, name: t.name, backend: t.backend, reader: reader, restore: restore}
	if a, b, c := reader.GetIptablesVersion(); a > 1 || b > 6 || b == 6 && c >= 2 {
		k.wait = []string{"-w", strconv.Itoa(int(lockWait / time.Second))} // since 1.6.2
	}
	return k, nil
}

func (k *kernelTable) Family() Family { return k.family }
func (k *kernelTable) String() string { return k.name }

func (k *kernelTable) Chains(context.Context) ([]string, error) {
	chains, err := k.reader.ListChains(table)
	if err != nil {
		return nil, fmt.Errorf("list the chains of %s: %w", table, explain(err))
	}
	return chains, nil
}

func (k *kernelTable) Rules(_ context.Context, chain string) ([]string, error) {
	lines, err := k.reader.List(table, chain)
	if err != nil {
		return nil, fmt.Errorf("list the rules of %s %s: %w", table, chain, explain(err))
	}
	var rules []string
	for _, line := range lines { // -P and -N lines say that the chain exists
		if strings.HasPrefix(line, "-A ") {
			rules = append(rules, line)
		}
	}
	return rules, nil
}

// Generation is known of nf_tables alone, and then counts the changes of all
// tables. An error is no news: Rules will meet it too.
func (k *kernelTable) Generation() (uint32, bool) {
	if k.backend != NFT {
		return 0, false
	}
	n, err := nftGeneration()
	return n, err == nil
}

func (k *kernelTable) Restore(ctx context.Context, text string) error {
	cmd := exec.CommandContext(ctx, k.restore, append([]string{"--noflush"}, k.wait...)...)
	cmd.Stdin = strings.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", k.restore, explain(fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))))
	}
	return nil
}

// explain gives the errors of the commands that a user can do something about
// words of their own. The commands have no error codes but these texts.
func explain(err error) error {
	text := err.Error()
	for _, sign := range []string{"Permission denied", "Operation not permitted", "you must be root"} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("%w (%s)", ErrPrivilege, strings.TrimSpace(text))
		}
	}
	return err
}
