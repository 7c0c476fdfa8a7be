// Package controlplane runs a real etcd and a real kube-apiserver for tests. Both are built
// from their Go modules only once (see [Build]). They keep their data in a directory of the
// test, listen only on loopback, and end with the test.
//
// There are no controllers, no scheduler and no kubelet. The fields that they would write,
// such as a pod's address, must be written by the test.
package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Host is the host on which a control plane runs, such as a host of a lab.
type Host interface {
	// Do runs f on a thread in the host's network.
	Do(f func() error) error
	// Start starts a command on the host. The caller must wait for it.
	Start(cmd *exec.Cmd) error
}

// Options are the programs of a control plane and the place where it runs.
type Options struct {
	Programs Programs
	Dir      string // for data, keys and logs
	Host     Host   // nil means the network of this process
}

// The users. Admin has all rights. Agent has the rights that a test grants it, for example
// with Grant.
const (
	Admin = "admin"
	Agent = "sluice"
)

// ControlPlane is a running etcd and kube-apiserver.
type ControlPlane struct {
	opts     Options
	etcdPort int
	port     int
	etcd     *process
	server   *process
}

// Start starts a control plane, and returns when it is ready. The caller must Close it.
func Start(ctx context.Context, opts Options) (*ControlPlane, error) {
	if opts.Host == nil {
		opts.Host = localHost{}
	}
	c := &ControlPlane{opts: opts}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the control plane: %w", err), c.Close())
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context) error {
	if err := c.opts.Host.Do(c.findPorts); err != nil {
		return err
	}
	if err := c.writeSecrets(); err != nil {
		return err
	}
	peer := "http://127.0.0.1:0"
	var err error
	c.etcd, err = launch(c.opts.Host, c.path("etcd.log"), c.opts.Programs.Etcd,
		"--data-dir", c.path("etcd"), "--listen-client-urls", c.etcdURL(), "--advertise-client-urls", c.etcdURL(),
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "default=http://127.0.0.1:2380",
		"--unsafe-no-fsync", "--log-level", "warn")
	if err != nil {
		return err
	}
	return c.StartServer(ctx)
}

func (c *ControlPlane) path(name string) string { return filepath.Join(c.opts.Dir, name) }

func (c *ControlPlane) etcdURL() string { return fmt.Sprintf("http://127.0.0.1:%d", c.etcdPort) }

// URL returns the address of the API server, on the loopback of its host.
func (c *ControlPlane) URL() string { return fmt.Sprintf("https://127.0.0.1:%d", c.port) }

// findPorts finds two free ports.
func (c *ControlPlane) findPorts() error {
	for _, port := range []*int{&c.etcdPort, &c.port} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("find a port: %w", err)
		}
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// writeSecrets writes the users' tokens and a key for service accounts.
func (c *ControlPlane) writeSecrets() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	var users []byte
	for _, user := range []string{Admin, Agent} {
		groups := ""
		if user == Admin {
			groups = `,"system:masters"`
		}
		users = fmt.Appendf(users, "%s,%s,%s%s\n", token(user), user, user, groups)
	}
	return errors.Join(os.WriteFile(c.path("sa.key"), block, 0o600), os.WriteFile(c.path("tokens.csv"), users, 0o600))
}

// token returns a user's token. It need not be secret: only the test can reach the server, and
// the server has no real data.
func token(user string) string { return "token-of-" + user }

// StartServer starts the API server, for example after StopServer, and returns when it is
// ready.
func (c *ControlPlane) StartServer(ctx context.Context) error {
	var err error
	c.server, err = launch(c.opts.Host, c.path("kube-apiserver.log"), c.opts.Programs.APIServer,
		"--etcd-servers", c.etcdURL(), "--bind-address", "127.0.0.1", "--secure-port", strconv.Itoa(c.port),
		"--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none", "--cert-dir", c.path("certs"),
		"--token-auth-file", c.path("tokens.csv"), "--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", c.path("sa.key"),
		"--service-account-signing-key-file", c.path("sa.key"), "--service-cluster-ip-range", "10.96.0.0/16")
	if err != nil {
		return err
	}
	return c.await(ctx)
}

// StopServer ends the API server with a signal, and returns when it has ended. etcd continues.
func (c *ControlPlane) StopServer(s syscall.Signal) error {
	if err := c.server.end(s); err != nil {
		return fmt.Errorf("stop the API server: %w", err)
	}
	return nil
}

// await waits until the server is ready or has ended.
func (c *ControlPlane) await(ctx context.Context) error {
	var last error
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w: %w; its log ends with\n%s", ctx.Err(), last, c.server.tail())
		case <-c.server.done:
			return fmt.Errorf("the API server has ended: %w; its log ends with\n%s", c.server.err, c.server.tail())
		case <-c.etcd.done:
			return fmt.Errorf("etcd has ended: %w; its log ends with\n%s", c.etcd.err, c.etcd.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ready returns nil if the server reports that it is ready.
func (c *ControlPlane) ready(ctx context.Context) error {
	client, err := c.Client(Admin)
	if err != nil {
		return err
	}
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// Config returns a configuration for connecting to the API server as a user, from this process.
func (c *ControlPlane) Config(user string) (*rest.Config, error) {
	ca, err := os.ReadFile(c.path("certs/apiserver.crt")) // the certificate is self-signed, so it is also its CA
	if err != nil {
		return nil, fmt.Errorf("read the API server's certificate: %w", err)
	}
	return &rest.Config{
		Host: c.URL(), BearerToken: token(user), TLSClientConfig: rest.TLSClientConfig{CAData: ca},
		QPS: -1, Dial: c.dial, // -1 disables the client's rate limit
	}, nil
}

// dial connects to an address in the network of the server's host.
func (c *ControlPlane) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = c.opts.Host.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Client returns a client for a user.
func (c *ControlPlane) Client(user string) (*kubernetes.Clientset, error) {
	config, err := c.Config(user)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// Kubeconfig writes a kubeconfig for a user and returns its path. The kubeconfig works only on
// the server's host.
func (c *ControlPlane) Kubeconfig(user string) (string, error) {
	config, err := c.Config(user)
	if err != nil {
		return "", err
	}
	out := clientcmdapi.NewConfig()
	out.Clusters["test"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	out.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	out.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: user}
	out.CurrentContext = "test"
	file := c.path(user + ".kubeconfig")
	return file, clientcmd.WriteToFile(*out, file)
}

// Close kills both programs, and returns when they have ended.
func (c *ControlPlane) Close() error {
	var errs []error
	for _, p := range []*process{c.server, c.etcd} {
		if p != nil {
			errs = append(errs, p.end(syscall.SIGKILL)) // the data is not needed
		}
	}
	return errors.Join(errs...)
}
