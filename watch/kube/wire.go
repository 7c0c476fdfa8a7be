package kube

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// This file decodes Pods and Nodes without the API's own types. Every agent receives every
// pod of the cluster, and receives it again after each change of its conditions. Decisions
// need 200 bytes of a pod's 3 KB. Skipping the other fields takes a tenth of the time and the
// allocations of decoding them.
//
// The constants are the field numbers in the API's .proto files, which never change. A test
// compares them with the API's types.
const (
	envelopeType, envelopeRaw              = 1, 2 // runtime.Unknown
	envelopeEncoding                       = 3
	typeVersion, typeKind                  = 1, 2 // runtime.TypeMeta
	listMeta, listItems                    = 1, 2
	objectMeta, objectSpec, objectStatus   = 1, 2, 3
	metaName, metaNamespace, metaVersion   = 1, 3, 6
	metaCreated, metaLabels, metaNotes     = 8, 11, 12
	metaDeleted                            = 9
	entryKey, entryValue                   = 1, 2 // an entry of a map
	specContainers, specInit, specHostNet  = 2, 20, 11
	specNodeName                           = 10
	containerPorts, containerRestart       = 6, 24
	portName, portNumber, portProtocol     = 1, 3, 4
	statusPhase, statusHostIP, statusPodIP = 1, 5, 6
	statusPodIPs, statusHostIPs            = 12, 16
	ipText                                 = 1
	nodePodCIDR, nodeTaints, nodePodCIDRs  = 1, 5, 7
	taintKey                               = 1
	nodeAddresses                          = 5
	nodeAddressType, nodeAddress           = 1, 2
)

// magic is the prefix of objects encoded as protobuf.
var magic = []byte("k8s\x00")

// field is a field of an encoded message. The wire type determines which is set: the slice
// "bytes" or the number "value".
type field struct {
	number protowire.Number
	bytes  []byte
	value  uint64
}

// each calls f for each field of a message. It returns an error if the message is malformed
// or f fails.
func each(message []byte, f func(field) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		at := field{number: number}
		switch kind {
		case protowire.BytesType:
			at.bytes, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			at.value, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := f(at); err != nil {
			return err
		}
	}
	return nil
}

// decodeProtobuf decodes a Pod, a Node or a list of Pods. It returns nil for anything else,
// and for data that it does not understand. The caller passes such data to the API's own
// decoder.
func (d decoder) decodeProtobuf(data []byte) runtime.Object {
	rest, ok := bytes.CutPrefix(data, magic)
	if !ok {
		return nil
	}
	var version, kind, encoding, raw []byte
	err := each(rest, func(f field) error {
		switch f.number {
		case envelopeType:
			return each(f.bytes, func(f field) error {
				switch f.number {
				case typeVersion:
					version = f.bytes
				case typeKind:
					kind = f.bytes
				}
				return nil
			})
		case envelopeRaw:
			raw = f.bytes
		case envelopeEncoding:
			encoding = f.bytes
		}
		return nil
	})
	if err != nil || string(version) != "v1" || len(encoding) > 0 {
		return nil
	}
	var o runtime.Object
	switch string(kind) {
	case "Pod":
		o, err = d.wirePod(raw)
	case "PodList":
		o, err = d.wirePods(raw)
	case "Node":
		o, err = d.wireNode(raw)
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	return o
}

func (d decoder) wirePods(raw []byte) (runtime.Object, error) {
	list := new(metainternal.List)
	err := each(raw, func(f field) error {
		switch f.number {
		case listMeta:
			return list.ListMeta.Unmarshal(f.bytes)
		case listItems:
			p, err := d.wirePod(f.bytes)
			list.Items = append(list.Items, p)
			return err
		}
		return nil
	})
	return list, err
}

// parts returns the metadata, spec and status of an object, still encoded.
func parts(raw []byte) (meta, spec, status []byte, err error) {
	err = each(raw, func(f field) error {
		switch f.number {
		case objectMeta:
			meta = f.bytes
		case objectSpec:
			spec = f.bytes
		case objectStatus:
			status = f.bytes
		}
		return nil
	})
	return meta, spec, status, err
}

func (d decoder) wirePod(raw []byte) (*pod, error) {
	meta, spec, status, err := parts(raw)
	if err != nil {
		return nil, err
	}
	p, at := new(pod), d.shared.texts.Get().(*texts)
	defer d.shared.texts.Put(at)
	at.reset()
	if err := wireMeta(&p.slimMeta, meta, &at.labels); err != nil {
		return nil, err
	}
	if err := p.readStatus(status); err != nil {
		return nil, err
	}
	if err := p.readSpec(spec, at); err != nil {
		return nil, err
	}
	if p.noAddr = p.noAddr || len(p.addrs) == 0; p.noAddr {
		p.addrs, p.hosts, p.node = nil, nil, ""
		return p, nil
	}
	p.labels, p.ports = d.shared.labelsIn(at.labels), d.shared.portsIn(append(at.ports, at.sidecars...))
	return p, nil
}

// wireMeta decodes the metadata into m. If labels is not nil, wireMeta appends the text form of
// the labels to it. The caller passes this text to labelsIn if it needs the set of labels.
func wireMeta(m *slimMeta, meta []byte, labels *labelText) error {
	return each(meta, func(f field) error {
		switch f.number {
		case metaName:
			m.Name = string(f.bytes)
		case metaNamespace:
			m.Namespace = interned(string(f.bytes))
		case metaVersion:
			m.version = string(f.bytes)
		case metaCreated:
			return m.created.Unmarshal(f.bytes)
		case metaDeleted:
			m.ending = true
		case metaLabels:
			if labels != nil {
				k, v, err := entry(f.bytes)
				labels.add(k, v)
				return err
			}
		case metaNotes:
			k, v, err := entry(f.bytes)
			m.end = m.end || string(k) == metav1.InitialEventsAnnotationKey && string(v) == "true"
			return err
		}
		return nil
	})
}

// entry decodes an entry of a map.
func entry(raw []byte) (key, value []byte, err error) {
	err = each(raw, func(f field) error {
		switch f.number {
		case entryKey:
			key = f.bytes
		case entryValue:
			value = f.bytes
		}
		return nil
	})
	return key, value, err
}

func (p *pod) readStatus(status []byte) error {
	var podIP, hostIP []byte
	err := each(status, func(f field) (err error) {
		switch f.number {
		case statusPhase:
			phase := corev1.PodPhase(f.bytes)
			p.noAddr = phase == corev1.PodSucceeded || phase == corev1.PodFailed
		case statusPodIP:
			podIP = f.bytes
		case statusHostIP:
			hostIP = f.bytes
		case statusPodIPs:
			p.addrs, err = appendIP(p.addrs, f.bytes)
		case statusHostIPs:
			p.hosts, err = appendIP(p.hosts, f.bytes)
		}
		return err
	})
	p.addrs, p.hosts = appendMissing(p.addrs, podIP), appendMissing(p.hosts, hostIP)
	return err
}

func appendIP(list []string, raw []byte) ([]string, error) {
	var text string
	err := each(raw, func(f field) error {
		if f.number == ipText {
			text = string(f.bytes)
		}
		return nil
	})
	return append(list, text), err
}

func appendMissing(list []string, one []byte) []string {
	if len(one) > 0 && !slices.Contains(list, string(one)) {
		list = append(list, string(one))
	}
	return list
}

// readSpec decodes the spec into p. It appends the ports of containers to at.ports and those of
// sidecars to at.sidecars, in text form.
func (p *pod) readSpec(spec []byte, at *texts) error {
	return each(spec, func(f field) error {
		switch f.number {
		case specHostNet:
			p.noAddr = p.noAddr || f.value != 0
		case specNodeName:
			p.node = interned(string(f.bytes))
		case specContainers:
			_, err := wirePorts(&at.ports, f.bytes)
			return err
		case specInit:
			before := len(at.sidecars)
			always, err := wirePorts(&at.sidecars, f.bytes)
			if !always { // the init container is not a sidecar, and ends before the pod's containers start
				at.sidecars = at.sidecars[:before]
			}
			return err
		}
		return nil
	})
}

// wirePorts decodes a container's ports, and reports whether its restart policy is Always.
func wirePorts(text *portText, container []byte) (always bool, err error) {
	err = each(container, func(f field) error {
		switch f.number {
		case containerRestart:
			always = corev1.ContainerRestartPolicy(f.bytes) == corev1.ContainerRestartPolicyAlways
		case containerPorts:
			return wirePort(text, f.bytes)
		}
		return nil
	})
	return always, err
}

func wirePort(text *portText, raw []byte) error {
	var name, protocol []byte
	var number int32
	err := each(raw, func(f field) error {
		switch f.number {
		case portName:
			name = f.bytes
		case portNumber:
			number = int32(f.value)
		case portProtocol:
			protocol = f.bytes
		}
		return nil
	})
	text.add(name, protocol, number)
	return err
}

func (d decoder) wireNode(raw []byte) (*node, error) {
	meta, spec, status, err := parts(raw)
	if err != nil {
		return nil, err
	}
	n, at := new(node), d.shared.texts.Get().(*texts)
	defer d.shared.texts.Put(at)
	at.reset()
	if err := wireMeta(&n.slimMeta, meta, &at.node.labels); err != nil {
		return nil, err
	}
	if err := n.readSpec(spec, &at.node); err != nil {
		return nil, err
	}
	err = each(status, func(f field) error {
		if f.number == nodeAddresses {
			return wireAddress(&at.node, f.bytes)
		}
		return nil
	})
	n.text = at.node.String()
	return n, err
}

// readSpec decodes the spec, and appends the pod ranges to text.
func (n *node) readSpec(spec []byte, text *nodeText) error {
	var single []byte
	err := each(spec, func(f field) error {
		switch f.number {
		case nodePodCIDR:
			single = f.bytes
		case nodePodCIDRs:
			text.add(rangeItem, f.bytes)
		case nodeTaints:
			return each(f.bytes, func(f field) error {
				if f.number == taintKey {
					n.taints = append(n.taints, interned(string(f.bytes)))
				}
				return nil
			})
		}
		return nil
	})
	if len(text.items) == 0 && len(single) > 0 {
		text.add(rangeItem, single)
	}
	return err
}

// wireAddress decodes an address in the status of a Node, and appends it to text.
func wireAddress(text *nodeText, raw []byte) error {
	var addressType, address []byte
	err := each(raw, func(f field) error {
		switch f.number {
		case nodeAddressType:
			addressType = f.bytes
		case nodeAddress:
			address = f.bytes
		}
		return nil
	})
	text.add(addressItem(addressType), address)
	return err
}
