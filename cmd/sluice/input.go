package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
	"sluice/watch/kube"
	"sluice/watch/manifests"
)

// input selects the objects that a command reads: manifests, a live cluster, or a cluster as if
// manifests were applied to it.
type input struct {
	paths         []string
	recursive     bool
	podRanges     []string
	cluster       clusterOptions
	namespaces    []string // values of -n
	allNamespaces bool
	mentioned     []string       // namespaces that the question names
	command       *cobra.Command // the command that reads the objects
}

// loaded is what a command has read.
type loaded struct {
	manifests.Objects
	problems []manifests.Problem // reasons for which the API server would reject an object
	// namespace is the namespace of names without one.
	namespace string
	// scope lists the namespaces to which the answer is limited; empty if it is not limited.
	scope []string
	// podRanges are the values of --pod-cidr.
	podRanges []netip.Prefix
	// cluster is the name of the live cluster that was read; empty if no cluster was read.
	cluster string
}

// addInputFlags adds the flags that select objects. A command also needs addNamespaceFlag or
// addScopeFlags.
func addInputFlags(cmd *cobra.Command, in *input) {
	in.command = cmd
	fs := cmd.Flags()
	fs.StringArrayVarP(&in.paths, "filename", "f", nil, "`DIR` with manifests, with its subdirectories; or a file, or - for the standard input (repeatable)")
	fs.BoolVarP(&in.recursive, "recursive", "R", true, "as for kubectl; directories are always read with their subdirectories")
	fs.StringSliceVar(&in.podRanges, "pod-cidr", nil, "`CIDR` that pods without an address will have theirs from (repeatable)")
	addClusterFlags(fs, &in.cluster)
}

// addNamespaceFlag adds -n to a command whose answer is about flows that the user names.
func addNamespaceFlag(cmd *cobra.Command, in *input) {
	cmd.Flags().StringSliceVarP(&in.namespaces, "namespace", "n", nil,
		"`NAMESPACE` of names without one, and of objects in files without one; the default is the context's, or default")
}

// addScopeFlags adds -n and -A to a command whose answer is about everything that it reads.
func addScopeFlags(cmd *cobra.Command, in *input) {
	fs := cmd.Flags()
	fs.StringSliceVarP(&in.namespaces, "namespace", "n", nil,
		"limit the answer to this `NAMESPACE` (repeatable, or a list with commas); for a cluster, the default is the context's")
	fs.BoolVarP(&in.allNamespaces, "all-namespaces", "A", false, "do not limit the answer to namespaces, which is the default for files")
}

// live reports whether the command reads a cluster.
func (in *input) live() bool { return len(in.paths) == 0 || in.cluster.given() }

// validate returns an error if the flags contradict each other.
func (in *input) validate() error {
	switch {
	case !in.recursive:
		return errors.New("--recursive=false: directories are always read with their subdirectories: give single files with -f FILE")
	case slices.Contains(in.paths, ""):
		return errors.New("-f is empty: give a directory of manifests, a single file, or - for the standard input")
	case slices.Contains(in.namespaces, ""):
		return errors.New("-n is empty: give the name of a namespace")
	case in.allNamespaces && len(in.namespaces) > 0:
		return errors.New("-A is for all namespaces and -n for some: give one of them")
	case !in.scoped() && len(in.namespaces) > 1:
		return errors.New("-n is given more than once: give one namespace, and write namespace/name for the others")
	}
	return nil
}

// alsoStdin returns an error if -f and the given value of another flag both read the standard input.
func (in *input) alsoStdin(flag, value string) error {
	if value == manifests.Stdin && slices.Contains(in.paths, manifests.Stdin) {
		return fmt.Errorf("-f - and %s - both read the standard input: give a file to one of them", flag)
	}
	return nil
}

// mention adds the namespaces of names such as "shop/web" to those that the question names. A user who
// may not list all pods may still have the right to list the pods of these namespaces.
func (in *input) mention(names ...string) {
	for _, name := range names {
		if namespace := inventory.NamespaceIn(name); namespace != "" {
			in.mentioned = append(in.mentioned, namespace)
		}
	}
}

// read reads the objects. It returns an error if a namespace of the scope does not exist.
func (in *input) read(ctx context.Context, stdin io.Reader) (loaded, error) {
	l, err := in.readAll(ctx, stdin)
	if err != nil {
		return loaded{}, err
	}
	return l, cmp.Or(in.scopeRead(&l), l.scopeExists())
}

// readAll is like read, but does not check that the namespaces of the scope exist: diff checks this for
// both sides.
func (in *input) readAll(ctx context.Context, stdin io.Reader) (l loaded, err error) {
	if err := in.validate(); err != nil {
		return loaded{}, err
	}
	if in.scoped() {
		l.scope = in.namespaces
	} else if len(in.namespaces) == 1 {
		l.namespace = in.namespaces[0]
	}
	if l.podRanges, err = parseRanges("--pod-cidr", in.podRanges); err != nil {
		return loaded{}, err
	}
	if in.live() {
		if l.cluster, err = in.readLive(ctx, &l); err != nil {
			return loaded{}, err
		}
	}
	if len(in.paths) > 0 {
		files := manifests.Input{Paths: in.paths, Stdin: stdin, Namespace: l.namespace, Scope: l.scope, Command: in.command.CommandPath()}
		live := l.Objects
		if l.Objects, l.problems, err = files.Read(); err != nil {
			return loaded{}, err
		}
		if l.cluster != "" {
			l.Objects = manifests.Overlay(live, l.cluster, l.Objects)
		}
	}
	if len(l.scope) > len(in.namespaces) {
		l.Notes = append(l.Notes, manifests.Problem{File: l.cluster, Detail: "the answer is about namespace " + l.namespace, Hint: "-A for all namespaces"})
	}
	return l, nil
}

// readLive reads the cluster, and sets the namespace and the scope to those of its context if flags do
// not set them. It returns the name of the cluster, as in "context production".
func (in *input) readLive(ctx context.Context, l *loaded) (name string, err error) {
	target, err := in.cluster.target()
	if err == nil {
		in.settle(l, target)
		name = target.String()
		l.Objects, err = readCluster(ctx, target, append(slices.Clone(in.mentioned), l.around()...))
	}
	if err != nil && !in.cluster.given() && !errors.Is(err, kube.ErrNoCluster) {
		err = fmt.Errorf("%w; or give manifests with -f DIR", err) // the user may not have meant a cluster
	}
	return name, err
}

// scoped reports whether the command has the flags of addScopeFlags.
func (in *input) scoped() bool { return in.command.Flags().Lookup("all-namespaces") != nil }

// settle sets the namespace and the scope to those of the cluster's context if flags do not set them.
func (in *input) settle(l *loaded, t *kube.Target) {
	if l.namespace == "" {
		l.namespace = cmp.Or(t.Namespace, metav1.NamespaceDefault)
	}
	if in.scoped() && !in.allNamespaces && len(l.scope) == 0 {
		l.scope = []string{l.namespace}
	}
}

// scopeExists returns an error if there is neither a Namespace nor any object for a namespace of the
// scope.
func (l *loaded) scopeExists() error {
	return scopeIn(l.scope, *l)
}

// scopeIn returns an error for a namespace of the scope that none of the inputs has.
func scopeIn(scope []string, inputs ...loaded) error {
	there := make(map[string]bool)
	for _, l := range inputs {
		if l.namespacesUnread() {
			return nil
		}
		l.addNamespaces(there)
	}
	names := slices.Sorted(maps.Keys(there))
	for _, namespace := range scope {
		if there[namespace] {
			continue
		}
		if best, ok := near.Name(namespace, names); ok {
			return fmt.Errorf("there is no namespace %s: did you mean %s?", namespace, best)
		}
		return fmt.Errorf("there is no namespace %s: the namespaces here are %s", namespace, near.List(names, 8, ", "))
	}
	return nil
}

// addNamespaces adds the namespaces that are objects of the input, or have objects of it.
func (l *loaded) addNamespaces(to map[string]bool) {
	for object := range l.Origins {
		kind, name, _ := strings.Cut(object, " ")
		if namespace, _, in := strings.Cut(name, "/"); in || kind == "Namespace" {
			to[namespace] = true
		}
	}
}

// namespacesUnread reports whether the user may not list namespaces.
func (l *loaded) namespacesUnread() bool {
	return slices.ContainsFunc(l.NotRead, func(n manifests.NotRead) bool { return n.Kind == manifests.Kind{Name: "Namespace"} })
}

// forbidden returns the kinds of which not all objects could be read, because the user lacks the right.
func (l *loaded) forbidden() (all []inventory.Unread) {
	for _, n := range l.NotRead {
		if n.Forbidden && n.Kind != (manifests.Kind{Name: "Namespace"}) {
			all = append(all, inventory.Unread{Kind: n.Name, Only: n.Only})
		}
	}
	return all
}

// scopeRead returns an error if the pods or the policies of a namespace of the scope could not be read,
// for a command whose answer is about these namespaces.
func (in *input) scopeRead(l *loaded) error {
	if !in.scoped() {
		return nil
	}
	return l.readIn(l.scope)
}

// readIn returns an error if the pods or the policies of one of the namespaces could not be read.
func (l *loaded) readIn(namespaces []string) error {
	for _, u := range l.forbidden() {
		for _, namespace := range namespaces {
			if (u.Kind == "Pod" || u.Kind == "NetworkPolicy") && !slices.Contains(u.Only, namespace) {
				return fmt.Errorf("namespace %s could not be read: %w", namespace, u.Missing(namespace))
			}
		}
	}
	return nil
}

// around returns the namespaces to read if the user may not list objects of the whole cluster.
func (l *loaded) around() []string {
	if len(l.scope) > 0 {
		return l.scope
	}
	return []string{l.namespace}
}

// within reports whether the answer includes a namespace. It always includes objects without a
// namespace.
func (l *loaded) within(namespace string) bool {
	return namespace == "" || len(l.scope) == 0 || slices.Contains(l.scope, namespace)
}

// concerns reports whether the answer includes an object, such as "Pod shop/web".
func (l *loaded) concerns(object string) bool {
	kind, name, _ := strings.Cut(object, " ")
	namespace, _, has := strings.Cut(name, "/")
	switch {
	case kind == "Namespace":
		namespace = name
	case !has:
		return true
	}
	return l.within(namespace)
}

// parseRanges parses the CIDRs of a flag.
func parseRanges(flag string, texts []string) (ranges []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s %s: write a CIDR, such as 10.244.0.0/16 or fd00:10:244::/56", flag, text)
		}
		ranges = append(ranges, p.Masked())
	}
	return ranges, nil
}
