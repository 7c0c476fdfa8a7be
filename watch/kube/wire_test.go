package kube

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/randfill"

	"sluice/bench/testbed/cluster"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// filler returns a filler that fills objects with random values, including the fields that
// are not decoded.
func filler(seed int64) *randfill.Filler {
	addresses := []string{"10.0.0.1", "fd00::1", "10.0.0.2", "", "not an address"}
	names := []string{"", "http", "metrics", "dns"}
	return randfill.NewWithSeed(seed).NilChance(0.2).NumElements(0, 3).MaxDepth(12).Funcs(
		func(t *metav1.Time, c randfill.Continue) { *t = metav1.Unix(c.Rand.Int63n(4e9), 0) },
		func(t *metav1.MicroTime, c randfill.Continue) { t.Time = metav1.Unix(c.Rand.Int63n(4e9), 0).Time },
		func(q *resource.Quantity, c randfill.Continue) {
			*q = *resource.NewQuantity(c.Rand.Int63n(1e6), resource.DecimalSI)
		},
		func(f *metav1.FieldsV1, _ randfill.Continue) { *f = *metav1.NewFieldsV1("{}") },
		func(p *corev1.PodPhase, c randfill.Continue) {
			*p = []corev1.PodPhase{"", corev1.PodPending, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed}[c.Intn(7)]
		},
		func(s *corev1.PodSpec, c randfill.Continue) {
			c.FillNoCustom(s)
			s.HostNetwork = c.Intn(6) == 0
		},
		func(s *corev1.PodStatus, c randfill.Continue) {
			c.FillNoCustom(s)
			s.PodIP, s.HostIP = addresses[c.Intn(5)], addresses[c.Intn(5)]
			for i := range s.PodIPs {
				s.PodIPs[i].IP = addresses[c.Intn(5)]
			}
			for i := range s.HostIPs {
				s.HostIPs[i].IP = addresses[c.Intn(5)]
			}
		},
		func(a *corev1.NodeAddress, c randfill.Continue) {
			c.FillNoCustom(a)
			a.Type = []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName, corev1.NodeInternalDNS}[c.Intn(4)]
			if c.Intn(4) > 0 {
				a.Address = addresses[c.Intn(5)]
			}
		},
		func(p *corev1.ContainerPort, c randfill.Continue) {
			c.FillNoCustom(p)
			p.Name, p.ContainerPort = names[c.Intn(len(names))], int32(c.Intn(65536))
			p.Protocol = []corev1.Protocol{"", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[c.Intn(4)]
		},
		func(p *corev1.ContainerRestartPolicy, c randfill.Continue) {
			*p = []corev1.ContainerRestartPolicy{corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever}[c.Intn(2)]
		},
	)
}

// encode encodes an object as the API server does.
func encode(t testing.TB, o runtime.Object) []byte {
	t.Helper()
	scheme := newScheme(kinds)
	codecs := serializer.NewCodecFactory(scheme)
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	raw, err := runtime.Encode(codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), o)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func testDecoder(t testing.TB) decoder {
	t.Helper()
	codecs := serializer.NewCodecFactory(newScheme(kinds)).WithoutConversion()
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	return newSlimSerializer(codecs).DecoderToVersion(info.Serializer, nil).(decoder)
}

// TestWireAsDecoded checks that decodeProtobuf returns the same object as the API's own decoder
// followed by slimPod or slimNode.
func TestWireAsDecoded(t *testing.T) {
	d := testDecoder(t)
	withAddr, ports, nodeAddrs, nodeLabels := 0, 0, 0, 0
	reader := newNodes("", true, quietSlog)
	for seed := range int64(800) {
		var o corev1.Pod
		filler(seed).Fill(&o)
		raw := encode(t, &o)
		got, isPod := d.decodeProtobuf(raw).(*pod)
		if !isPod {
			t.Fatalf("seed %d: no pod was decoded", seed)
		}
		full, _, err := d.full.Decode(raw, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := slimPod(full.(*corev1.Pod), d.shared)
		if !samePod(got, want) {
			t.Fatalf("seed %d:\ngot  %+v\nwant %+v", seed, got, want)
		}
		if !got.noAddr {
			withAddr++
			ports += len(got.ports.of())
		}
		var n corev1.Node
		filler(seed).Fill(&n)
		raw = encode(t, &n)
		full, _, err = d.full.Decode(raw, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := d.decodeProtobuf(raw), slimNode(full.(*corev1.Node)); !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: node:\ngot  %+v\nwant %+v", seed, got, want)
		}
		form, wantForm := reader.parse(d.decodeProtobuf(raw).(*node)), kubepod.ReadNode(full.(*corev1.Node))
		if len(form.Labels) == 0 && len(wantForm.Labels) == 0 {
			form.Labels, wantForm.Labels = nil, nil
		}
		if !reflect.DeepEqual(form, wantForm) {
			t.Fatalf("seed %d: node:\ngot  %+v\nwant %+v", seed, form, wantForm)
		}
		nodeAddrs += len(form.Addrs)
		nodeLabels += len(form.Labels)
	}
	if nodeAddrs < 100 || nodeLabels < 100 {
		t.Errorf("Nodes had only %d addresses and %d labels: too few for this test", nodeAddrs, nodeLabels)
	}
	if withAddr < 100 || ports < 100 {
		t.Errorf("only %d pods had an address, and %d named ports: too few for this test", withAddr, ports)
	}
}

func samePod(a, b *pod) bool {
	return reflect.DeepEqual(a.form(), b.form()) && a.labels == b.labels && a.version == b.version && a.end == b.end
}

// TestWireBookmark checks that a bookmark, which is an almost empty object, is decoded.
func TestWireBookmark(t *testing.T) {
	for _, o := range []object{&pod{}, &node{}} {
		var whole runtime.Object = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}
		if _, isNode := o.(*node); isNode {
			whole = &corev1.Node{ObjectMeta: whole.(*corev1.Pod).ObjectMeta}
		}
		got := testDecoder(t).decodeProtobuf(encode(t, whole)).(object).GetObjectMeta()
		if got.GetResourceVersion() != "7" || got.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
			t.Errorf("%T: version %q, annotations %v", o, got.GetResourceVersion(), got.GetAnnotations())
		}
	}
}

// TestWireList checks that a page of pods is decoded, with the token of the next page.
func TestWireList(t *testing.T) {
	remaining := int64(7)
	list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "12", Continue: "next", RemainingItemCount: &remaining}}
	for seed := range int64(50) {
		var o corev1.Pod
		filler(seed).Fill(&o)
		list.Items = append(list.Items, o)
	}
	d := testDecoder(t)
	raw := encode(t, list)
	got, isList := d.decodeProtobuf(raw).(*metainternal.List)
	if !isList {
		t.Fatal("no list was decoded")
	}
	full, _, err := d.full.Decode(raw, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	slimList, err := d.slim(full)
	if err != nil {
		t.Fatal(err)
	}
	want := slimList.(*metainternal.List)
	if !reflect.DeepEqual(got.ListMeta, want.ListMeta) || len(got.Items) != len(list.Items) || len(want.Items) != len(list.Items) {
		t.Fatalf("got %+v with %d items, want %+v with %d", got.ListMeta, len(got.Items), want.ListMeta, len(list.Items))
	}
	for i := range got.Items {
		if got, want := got.Items[i].(*pod), want.Items[i].(*pod); !samePod(got, want) {
			t.Errorf("item %d:\ngot  %+v\nwant %+v", i, got, want)
		}
	}
}

// TestWireMalformed checks that truncated or corrupted data is left to the API's decoder,
// and causes no panic.
func TestWireMalformed(t *testing.T) {
	d := testDecoder(t)
	random := rand.New(rand.NewPCG(1, 1))
	for seed := range int64(60) {
		var o corev1.Pod
		filler(seed).Fill(&o)
		raw := encode(t, &o)
		for range 50 {
			spoilt := bytes.Clone(raw[:random.IntN(len(raw)+1)])
			for range random.IntN(3) {
				if len(spoilt) > 4 {
					spoilt[4+random.IntN(len(spoilt)-4)] = byte(random.Uint32())
				}
			}
			_, _, _ = d.Decode(spoilt, nil, nil) // decoding may succeed: a corrupted string is still a string
		}
	}
	if o, _, err := d.Decode([]byte("k8s\x00\xff"), nil, nil); err == nil {
		t.Errorf("no error, but %v", o)
	}
}

// TestFieldNumbers checks that the constants equal the field numbers in the tags of the
// API's types.
func TestFieldNumbers(t *testing.T) {
	for _, test := range []struct {
		message any
		field   string
		number  int
	}{
		{runtime.Unknown{}, "typeMeta", envelopeType}, {runtime.Unknown{}, "raw", envelopeRaw}, {runtime.Unknown{}, "contentEncoding", envelopeEncoding},
		{runtime.TypeMeta{}, "apiVersion", typeVersion}, {runtime.TypeMeta{}, "kind", typeKind},
		{corev1.PodList{}, "metadata", listMeta}, {corev1.PodList{}, "items", listItems},
		{corev1.Pod{}, "metadata", objectMeta}, {corev1.Pod{}, "spec", objectSpec}, {corev1.Pod{}, "status", objectStatus},
		{corev1.Node{}, "metadata", objectMeta}, {corev1.Node{}, "spec", objectSpec}, {corev1.Node{}, "status", objectStatus},
		{metav1.ObjectMeta{}, "name", metaName}, {metav1.ObjectMeta{}, "namespace", metaNamespace}, {metav1.ObjectMeta{}, "resourceVersion", metaVersion},
		{metav1.ObjectMeta{}, "creationTimestamp", metaCreated}, {metav1.ObjectMeta{}, "deletionTimestamp", metaDeleted}, {metav1.ObjectMeta{}, "labels", metaLabels}, {metav1.ObjectMeta{}, "annotations", metaNotes},
		{corev1.PodSpec{}, "containers", specContainers}, {corev1.PodSpec{}, "initContainers", specInit}, {corev1.PodSpec{}, "hostNetwork", specHostNet}, {corev1.PodSpec{}, "nodeName", specNodeName},
		{corev1.Container{}, "ports", containerPorts}, {corev1.Container{}, "restartPolicy", containerRestart},
		{corev1.ContainerPort{}, "name", portName}, {corev1.ContainerPort{}, "containerPort", portNumber}, {corev1.ContainerPort{}, "protocol", portProtocol},
		{corev1.PodStatus{}, "phase", statusPhase}, {corev1.PodStatus{}, "hostIP", statusHostIP}, {corev1.PodStatus{}, "podIP", statusPodIP},
		{corev1.PodStatus{}, "podIPs", statusPodIPs}, {corev1.PodStatus{}, "hostIPs", statusHostIPs},
		{corev1.PodIP{}, "ip", ipText}, {corev1.HostIP{}, "ip", ipText},
		{corev1.NodeSpec{}, "podCIDR", nodePodCIDR}, {corev1.NodeSpec{}, "podCIDRs", nodePodCIDRs},
		{corev1.NodeSpec{}, "taints", nodeTaints}, {corev1.Taint{}, "key", taintKey},
		{corev1.NodeStatus{}, "addresses", nodeAddresses}, {corev1.NodeAddress{}, "type", nodeAddressType}, {corev1.NodeAddress{}, "address", nodeAddress},
	} {
		if got := numberOf(test.message, test.field); got != test.number {
			t.Errorf("%T.%s is field %d, not %d", test.message, test.field, got, test.number)
		}
	}
}

// numberOf returns the field number from the tag of a struct's field, which is like
// "bytes,2,rep,name=x".
func numberOf(message any, name string) int {
	typ := reflect.TypeOf(message)
	for i := range typ.NumField() {
		parts := strings.Split(typ.Field(i).Tag.Get("protobuf"), ",")
		for _, p := range parts {
			if p == "name="+name {
				n := 0
				for _, digit := range parts[1] {
					n = 10*n + int(digit-'0')
				}
				return n
			}
		}
	}
	return 0
}

// TestSlimObjectsKeepDecisions checks that full and slim objects lead to the same
// decisions.
func TestSlimObjectsKeepDecisions(t *testing.T) {
	for seed := range uint64(15) {
		c := cluster.New(seed, cluster.Options{Pods: 200, Policies: 60, Namespaces: 5, DualStack: true})
		random := rand.New(rand.NewPCG(seed, 7))
		d := testDecoder(t)
		whole, lean := policy.NewStore(), policy.NewStore()
		for _, o := range c.Namespaces {
			whole.SetNamespace(o.Name, o.Labels)
			decodeInto(t, d, o, lean)
		}
		for _, o := range c.Policies {
			whole.SetPolicy(netpol.Read(o))
			networkPolicyKind.slim(o, nil).put(lean)
		}
		for _, o := range c.Pods {
			vary(o, random)
			whole.SetPod(kubepod.Read(o))
			decodeInto(t, d, o, lean)
		}
		want, _ := whole.Commit()
		got, _ := lean.Commit()
		allowed := 0
		for _, k := range c.Keys(seed, 20_000) {
			w, g := want.Decide(k), got.Decide(k)
			if !reflect.DeepEqual(w, g) {
				t.Fatalf("seed %d: %v: %v, want %v", seed, k, g, w)
			}
			if w.Action == filter.Allow && w.Reason == filter.RuleAllows {
				allowed++
			}
		}
		if allowed < 100 {
			t.Errorf("seed %d: rules allowed only %d flows: too few for this test", seed, allowed)
		}
	}
}

func decodeInto(t *testing.T, d decoder, o runtime.Object, w *policy.Store) {
	t.Helper()
	got, _, err := d.Decode(encode(t, o), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got.(object).put(w)
}

// vary gives some pods properties that few pods have.
func vary(o *corev1.Pod, random *rand.Rand) {
	always := corev1.ContainerRestartPolicyAlways
	switch random.IntN(12) {
	case 0:
		o.Spec.HostNetwork = true
	case 1:
		o.Status.Phase = corev1.PodSucceeded
	case 2:
		o.Status.PodIPs = nil // as from an older server
	case 3:
		o.Status.PodIP, o.Status.PodIPs = "", nil
	case 4:
		o.Spec.InitContainers = o.Spec.Containers // these are not sidecars, so their ports do not count
		o.Spec.Containers = nil
	case 5:
		o.Spec.InitContainers = o.Spec.Containers
		o.Spec.InitContainers[0].RestartPolicy = &always
		o.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 81}}}}
	case 6:
		o.Labels = nil
	case 7:
		o.CreationTimestamp = metav1.Unix(int64(random.IntN(1e9)), 0)
	}
}

// BenchmarkDecodePod measures the decoding of a running pod: with decodeProtobuf ("wire") and
// with the API's own decoder ("whole").
func BenchmarkDecodePod(b *testing.B) {
	d := testDecoder(b)
	var o corev1.Pod
	for seed := int64(0); o.Status.Phase != corev1.PodRunning || o.Spec.HostNetwork; seed++ {
		o = corev1.Pod{}
		filler(seed).Fill(&o)
	}
	raw := encode(b, &o)
	b.Run("wire", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.decodeProtobuf(raw)
		}
	})
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := d.full.Decode(raw, nil, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
