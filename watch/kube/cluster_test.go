package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"sluice/bench/testbed/cluster"
	"sluice/bench/testbed/controlplane"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
)

// real is a real API server, with an administrator's client that writes to it.
type real struct {
	*testing.T
	*controlplane.ControlPlane
	admin *kubernetes.Clientset
	ctx   context.Context
}

func realServer(t *testing.T) *real {
	t.Helper()
	c := controlplane.ForTest(t, nil)
	admin, err := c.Client(controlplane.Admin)
	if err != nil {
		t.Fatal(err)
	}
	return &real{t, c, admin, context.Background()}
}

func (r *real) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// grant gives the agent the rights that it needs.
func (r *real) grant() {
	r.Helper()
	r.must(controlplane.Grant(r.ctx, r.admin))
}

// config returns a user's configuration for a client of the API server.
func (r *real) config(user string) *rest.Config {
	r.Helper()
	config, err := r.Config(user)
	r.must(err)
	return config
}

func (r *real) createPod(p *corev1.Pod) {
	r.Helper()
	r.must(controlplane.CreatePod(r.ctx, r.admin, p))
}

func (r *real) deletePod(name string) {
	r.Helper()
	now := int64(0)
	r.must(r.admin.CoreV1().Pods("default").Delete(r.ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
}

func (r *real) small() {
	r.Helper()
	r.createPod(makePod("db", "10.1.0.1", role("db")))
	r.createPod(makePod("web", "10.1.0.2", role("frontend")))
	r.createPod(makePod("other", "10.1.0.3", nil))
	_, err := r.admin.NetworkingV1().NetworkPolicies("default").Create(r.ctx, makePolicy("access-db", "frontend"), metav1.CreateOptions{})
	r.must(err)
}

// link is a network connection that can be cut.
type link struct {
	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

func (l *link) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case l.isCut:
		return nil, errors.Join(&net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}, conn.Close())
	}
	l.conns = append(l.conns, conn)
	return conn, nil
}

func (l *link) set(isCut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = isCut
	for _, c := range l.conns {
		_ = c.Close() // an error only means that c was closed before
	}
	l.conns = nil
}

// TestClusterFollow checks that the policies and pods of a real API server are in force,
// even after failures of the server and of the connection.
func TestClusterFollow(t *testing.T) {
	r := realServer(t)
	r.grant()
	r.small()
	var l link
	config := r.config(controlplane.Agent)
	config.Dial = l.dial
	f := follow(t, config, Options{})

	t.Log("the existing objects are in force, and changes follow")
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
	_, err := r.admin.CoreV1().Pods("default").Patch(r.ctx, "other", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"role":"frontend"}}}`), metav1.PatchOptions{})
	r.must(err)
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Allow)
	r.must(r.admin.NetworkingV1().NetworkPolicies("default").Delete(r.ctx, "access-db", metav1.DeleteOptions{}))
	f.verdict("10.1.0.3", "10.1.0.1", 80, filter.Allow)
	_, err = r.admin.NetworkingV1().NetworkPolicies("default").Create(r.ctx, makePolicy("access-db", "frontend"), metav1.CreateOptions{})
	r.must(err)
	f.verdict("10.1.0.3", "10.1.0.1", 80, filter.Deny)
	r.deletePod("web")
	f.names("10.1.0.2", "")

	t.Log("the server is killed: the known objects stay in force; it is restarted: new objects come into force")
	r.must(r.StopServer(syscall.SIGKILL))
	f.health(podKind, "the server is unreachable", func(h KindHealth) bool { return h.Err != nil })
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Allow)
	f.verdict("10.1.0.3", "10.1.0.1", 80, filter.Deny)
	r.must(r.StartServer(r.ctx))
	r.createPod(makePod("web", "10.1.0.4", role("frontend")))
	f.names("10.1.0.4", "default/web")
	for _, k := range kinds {
		f.health(k, "it has recovered", func(h KindHealth) bool { return h.Err == nil && h.Synced })
	}

	t.Log("the connection is cut; meanwhile a pod is deleted, another one gets its address, a policy is replaced, and the server forgets these events")
	l.set(true)
	f.health(podKind, "the server is unreachable", func(h KindHealth) bool { return h.Err != nil })
	r.deletePod("other")
	r.createPod(makePod("new", "10.1.0.3", nil))
	r.must(r.admin.NetworkingV1().NetworkPolicies("default").Delete(r.ctx, "access-db", metav1.DeleteOptions{}))
	_, err = r.admin.NetworkingV1().NetworkPolicies("default").Create(r.ctx, makePolicy("other", "unused"), metav1.CreateOptions{})
	r.must(err)
	r.must(r.StopServer(syscall.SIGTERM))
	r.must(r.StartServer(r.ctx))
	f.names("10.1.0.3", "default/other") // the connection is still cut, so the old state stays in force
	l.set(false)
	f.names("10.1.0.3", "default/new")
	f.verdict("10.1.0.4", "10.1.0.1", 6379, filter.Deny)
}

// TestClusterRefused checks that missing rights are logged once for each kind, with the name of
// the kind, and that the source recovers once the rights are granted.
func TestClusterRefused(t *testing.T) {
	r := realServer(t)
	r.install("standard", "v1beta1")
	r.small()
	f := follow(t, r.config(controlplane.Agent), Options{})
	for _, k := range kinds {
		f.health(k, "access is refused", func(h KindHealth) bool {
			return apierrors.IsForbidden(h.Err) && strings.Contains(h.Err.Error(), "list and watch "+k.resource) && strings.Contains(h.Err.Error(), `User "sluice"`)
		})
	}
	f.health(podKind, "the request has been retried", func(h KindHealth) bool { return h.Errors >= 6 })
	if n := f.log.count(event.APIUnreachable); n != len(kinds) {
		t.Errorf("%d warnings, want one for each of %d kinds", n, len(kinds))
	}
	if f.published.Snapshot() != nil {
		t.Error("a snapshot was published although nothing is known")
	}
	r.grant()
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
	if n := f.log.count(event.APIReachable); n != 1 {
		t.Errorf("the recovery was logged %d times, want once", n)
	}
}

// TestClusterUnauthorized checks that a wrong token and an unknown certificate authority
// are reported with a hint.
func TestClusterUnauthorized(t *testing.T) {
	r := realServer(t)
	config := r.config(controlplane.Agent)
	config.BearerToken = "wrong"
	f := follow(t, config, Options{})
	f.health(podKind, "the token is refused", func(h KindHealth) bool {
		return apierrors.IsUnauthorized(h.Err) && strings.Contains(h.Err.Error(), "credentials")
	})
	config = r.config(controlplane.Agent)
	config.CAData = nil
	f = follow(t, config, Options{})
	f.health(podKind, "the certificate is refused", func(h KindHealth) bool {
		return h.Err != nil && strings.Contains(h.Err.Error(), "certificate-authority")
	})
}

// TestClusterLatency prints the time from a write to the API until a snapshot with the
// changed verdict is in force, with a thousand pods and a hundred other policies.
func TestClusterLatency(t *testing.T) {
	const changes = 500
	r := realServer(t)
	r.grant()
	r.must(controlplane.Fill(r.ctx, r.admin, cluster.New(1, cluster.Options{Pods: 1000, Policies: 100, Namespaces: 20})))
	r.small()
	f := follow(t, r.config(controlplane.Agent), Options{NodeRanges: true})
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
	if c := f.published.Snapshot().Counts(); c.Pods < 1000 || c.Policies < 100 {
		t.Fatalf("there are only %d pods and %d policies", c.Pods, c.Policies)
	}
	key := filter.NewKey(netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.1"), filter.TCP, 6379)
	policies := r.admin.NetworkingV1().NetworkPolicies("default")
	var begun, answered []time.Duration
	for i := range changes {
		from, want := "frontend", filter.Allow
		if i%2 == 0 {
			from, want = "unused", filter.Deny
		}
		inForce := make(chan time.Time, 1)
		go func() {
			f.until("the change is in force", func(s *policy.Snapshot) bool { return s.Decide(key).Action == want })
			inForce <- time.Now()
		}()
		before := time.Now()
		_, err := policies.Update(r.ctx, makePolicy("access-db", from), metav1.UpdateOptions{})
		after := time.Now()
		r.must(err)
		at := <-inForce
		begun, answered = append(begun, at.Sub(before)), append(answered, at.Sub(after))
	}
	fmt.Printf("%d changes of a policy, beside 1,000 pods and 100 policies, until the snapshot is in force:\n", changes)
	for name, list := range map[string][]time.Duration{"from the request": begun, "from the response": answered} {
		slices.Sort(list)
		fmt.Printf("  %-26s p50 %v  p99 %v  max %v\n", name, list[changes/2], list[changes*99/100], list[changes-1])
	}
}
