package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sluice/filter"
)

const ipvsText = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0000201:192B      Masq    1      2          0
UDP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0035 rr
  -> [fd00:0000:0000:0000:0000:0000:0000:0002]:0035      Masq    1      0          0
TCP  nonsense rr
SCTP 0A600002:zz rr
`

func TestIPVSServices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ip_vs")
	none := &ipvsServices{path: path}
	pod := map[bool]string{true: "10.0.0.1", false: "fd00::1"}
	key := func(dst string, protocol filter.Protocol, port uint16) filter.Key {
		to := netip.MustParseAddr(dst)
		return filter.NewKey(netip.MustParseAddr(pod[to.Is4()]), to, protocol, port)
	}
	if is, possible := none.translated(key("10.96.0.1", filter.TCP, 443)); is || possible {
		t.Error("a service without IPVS")
	}
	if err := os.WriteFile(path, []byte(ipvsText), 0o600); err != nil {
		t.Fatal(err)
	}
	v := &ipvsServices{path: path}
	opaque := key("10.96.0.1", filter.TCP, 443)
	opaque.Transport = filter.Opaque
	for k, want := range map[filter.Key]bool{
		key("10.96.0.1", filter.TCP, 443):  true,
		key("10.96.0.1", filter.UDP, 443):  false,
		key("10.96.0.1", filter.TCP, 80):   false,
		key("192.0.2.1", filter.TCP, 6443): false, // a server
		key("fd00:96::a", filter.UDP, 53):  true,
		key("fd00:96::b", filter.UDP, 53):  false,
		opaque:                             false,
	} {
		if is, possible := v.translated(k); is != want || !possible {
			t.Errorf("%s: translated %t, possible %t, want %t", k, is, possible, want)
		}
	}
	if services, marked := parseIPVS([]byte("FWM  00000064 rr\n")); len(services) != 0 || !marked {
		t.Errorf("a service by mark: %v, %t", services, marked)
	}
}

// If the list has no service for a packet, it is read again before the packet counts as one to
// the node, because the service may be new. It is not read again before the time nextMiss.
func TestNewIPVSService(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ip_vs")
	v := &ipvsServices{path: path}
	key := filter.NewKey(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.96.0.1"), filter.TCP, 443)
	if is, _ := v.translated(key); is {
		t.Fatal("a service without IPVS")
	}
	if err := os.WriteFile(path, []byte(ipvsText), 0o600); err != nil {
		t.Fatal(err)
	}
	v.next = time.Now().Add(time.Hour)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if is, _ := v.translated(key); is {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the new service counts as the node")
		}
	}
	v.nextMiss = time.Now().Add(time.Hour)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	key.Port = 444
	if is, possible := v.translated(key); is || !possible {
		t.Errorf("translated %t, possible %t: the list was read again too soon", is, possible)
	}
}
