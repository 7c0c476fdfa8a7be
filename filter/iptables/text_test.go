package iptables

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestWantedText(t *testing.T) {
	for f, file := range map[Family]string{IPv4: "testdata/ipv4.txt", IPv6: "testdata/ipv6.txt"} {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := Defaults.Wanted(f); got != string(want) {
			t.Errorf("%s: the rules are\n%s\nand should be\n%s", f, got, want)
		}
	}
}

func TestWantedFollowsTheOptions(t *testing.T) {
	o := Options{AllowedMark: 0x100, RevokedMark: 0x80000000, FirstQueue: 7, Queues: 1, FailOpen: true}
	got := o.Wanted(IPv4)
	for _, line := range []string{
		"-A SLUICE -m mark --mark 0x100/0x100 -g SLUICE-ALLOW",
		"-A SLUICE -m connmark --mark 0x100/0x80000100 -m conntrack ! --ctstate RELATED -j RETURN",
		"-A SLUICE -m connmark --mark 0x80000000/0x80000000 -j DROP",
		"-A SLUICE -j NFQUEUE --queue-num 7 --queue-bypass",
		"-A SLUICE-ALLOW -j CONNMARK --set-xmark 0x100/0x80000100",
		"-A SLUICE-ALLOW -j MARK --set-xmark 0x0/0x100",
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("there is no line %q in\n%s", line, got)
		}
	}
	if strings.Contains(got, "hashlimit") {
		t.Errorf("a rule for the overflow queue, without a limit:\n%s", got)
	}
	o.SourceShare = 3000 // the kernel stores ⌊1,000,000/3000⌋ = 333, and iptables prints ⌊1,000,000/333⌋ = 3003
	if want := "--hashlimit-above 3003/sec --hashlimit-burst 300 --hashlimit-mode srcip --hashlimit-name sluice-3003 "; !strings.Contains(o.Wanted(IPv4), want) {
		t.Errorf("there is no %q in\n%s", want, o.Wanted(IPv4))
	}
	if want := " -j NFQUEUE --queue-num 8 --queue-bypass\n-A SLUICE -j NFQUEUE --queue-num 7 --queue-bypass\n"; !strings.Contains(o.Wanted(IPv6), want) {
		t.Errorf("there is no %q in\n%s", want, o.Wanted(IPv6))
	}
	o.Queues = 3
	if want := "-A SLUICE -j NFQUEUE --queue-balance 7:9 --queue-bypass\n"; !strings.Contains(o.Wanted(IPv6), want) {
		t.Errorf("there is no line %q in\n%s", want, o.Wanted(IPv6))
	}
}

// Two of the rules that consult the BPF cache are immediately before the queue rules. The one about
// forwarded packets follows the rules about allowed packets and connections. All stay during a pause.
func TestCacheRules(t *testing.T) {
	forwarded := "-A SLUICE -m conntrack --ctstate INVALID,NEW,RELATED,UNTRACKED -m bpf --object-pinned /pins/forwarded -g SLUICE-ALLOW"
	others, deny := "-A SLUICE -m bpf --object-pinned /pins/others -g SLUICE-ALLOW", "-A SLUICE -m bpf --object-pinned /pins/deny -j DROP"
	o := pinnedOptions()
	allowedOnly := o
	allowedOnly.DenyPin, allowedOnly.SourceShare = "", 0
	for _, f := range Families {
		plain := Defaults.chains(f)[Chain]
		first, before, overflow, queue := plain[:2], plain[2:len(plain)-2], plain[len(plain)-2], plain[len(plain)-1]
		for _, c := range []struct {
			got  map[string][]string
			last []string
		}{
			{o.chains(f), []string{others, deny, overflow, queue}},
			{allowedOnly.chains(f), []string{others, queue}},
			{o.paused(f, DropUnqueued), []string{others, deny, "-A SLUICE -j DROP"}},
		} {
			if got, want := c.got[Chain], slices.Concat(first, []string{forwarded}, before, c.last); !slices.Equal(got, want) {
				t.Errorf("%s: the chain is\n%s\nand should be\n%s", f, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
}

func TestPinsThatIptablesCannotRead(t *testing.T) {
	for _, path := range []string{"/sys/fs/b pf/allow", "/sys/\"bpf/allow", "/" + strings.Repeat("x", 511)} {
		o := Defaults
		o.DenyPin = path
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "without blanks") {
			t.Errorf("%q: error %v", path, err)
		}
	}
}

// A pause replaces only the last two rules of the main chain, those of the queues.
func TestPausedDiffersOnlyInTheQueues(t *testing.T) {
	for _, f := range Families {
		for packets, last := range map[Unqueued]string{PassUnqueued: "-A SLUICE -j RETURN", DropUnqueued: "-A SLUICE -j DROP"} {
			want := Defaults.chains(f)
			want[Chain] = append(want[Chain][:len(want[Chain])-2], last)
			got := Defaults.paused(f, packets)
			for _, name := range mangle.chains {
				if !slices.Equal(got[name], want[name]) {
					t.Errorf("%s, packets %v: chain %s is %q, want %q", f, packets, name, got[name], want[name])
				}
			}
		}
	}
}

func TestLeadsTo(t *testing.T) {
	tests := map[string]bool{
		"-A POSTROUTING -j SLUICE": true,
		"-A POSTROUTING -g SLUICE": true,
		"-A POSTROUTING -s 10.0.0.0/8 -g SLUICE-OLD -m comment --comment a":   true,
		"-A POSTROUTING -j SLUICE\n":                                          true,
		"-A POSTROUTING -m comment --comment \"who \\\"is\\\"\" -j SLUICE":    true,
		"-A POSTROUTING -j SLUICEGATE":                                        false,
		"-A SLUICE -j RETURN":                                                 false,
		"-A POSTROUTING -m comment --comment \"a -j SLUICE b\" -j RETURN":     false,
		"-A POSTROUTING -m comment --comment \"\\\" -j SLUICE \" -j RETURN":   false,
		"-A POSTROUTING -j":                                                   false,
		"":                                                                    false,
		"-A POSTROUTING -m comment --comment SLUICE -m mark --mark 1 -j DROP": false,
	}
	for rule, want := range tests {
		if got := leadsTo(rule, isOwned); got != want {
			t.Errorf("%s: %v", rule, got)
		}
	}
}

func TestValidate(t *testing.T) {
	if err := Defaults.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	tests := map[string]struct {
		change func(*Options)
		want   string
	}{
		"no bit":         {func(o *Options) { o.AllowedMark = 0 }, "--allowed-mark 0x0 has 0 bits"},
		"two bits":       {func(o *Options) { o.RevokedMark = 3 }, "--revoked-mark 0x3 has 2 bits"},
		"kube-proxy":     {func(o *Options) { o.AllowedMark = 0x4000 }, "kube-proxy"},
		"the same":       {func(o *Options) { o.AllowedMark = o.RevokedMark }, "two different bits"},
		"no queue":       {func(o *Options) { o.Queues = 0 }, "1 to 65535"},
		"too many":       {func(o *Options) { o.FirstQueue = 65534 }, "give 1 to 1"},
		"no room":        {func(o *Options) { o.FirstQueue = 65535 }, "give 0 to 65534"},
		"share":          {func(o *Options) { o.SourceShare = 10001 }, "--source-share 10001: give 1 to 10000"},
		"no share":       {func(o *Options) { o.SourceShare = -1 }, "or 0"},
		"backend":        {func(o *Options) { o.Backend = "ipset" }, "auto, nft or legacy"},
		"all that fails": {func(o *Options) { *o = Options{} }, "--queues 0"},
	}
	for name, tt := range tests {
		o := Defaults
		tt.change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
