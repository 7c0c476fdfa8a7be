package flow_test

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
)

// fill sets all exported fields of v, and those of the values to which they point.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString("a<b>\"\\\n\u2028é&\xff")
	case reflect.Uint16, reflect.Uint64:
		v.SetUint(12345)
	case reflect.Float64:
		v.SetFloat(1.25)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"z": "1", "a": "<2>"}))
	case reflect.Struct:
		switch v.Type() {
		case reflect.TypeFor[time.Time]():
			v.Set(reflect.ValueOf(start.Add(1234567)))
		case reflect.TypeFor[netip.Addr]():
			v.Set(reflect.ValueOf(netip.MustParseAddr("2001:db8::1")))
		default:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					fill(v.Field(i))
				}
			}
		}
	default:
		panic("fill: " + v.Kind().String())
	}
}

// AppendJSON writes a record as json.Marshal does. The records have no field, all fields, one field each,
// or numbers and times of many sizes.
func TestAppendJSON(t *testing.T) {
	full := flow.Record{}
	fill(reflect.ValueOf(&full).Elem())
	records := []*flow.Record{{}, &full}
	for i := range reflect.TypeFor[flow.Record]().NumField() {
		one := new(flow.Record)
		fill(reflect.ValueOf(one).Elem().Field(i))
		records = append(records, one)
	}
	for _, s := range []float64{1e-9, 1e-6, 123456789.123, 3e21, -1} {
		records = append(records, &flow.Record{Seconds: s})
	}
	for _, at := range []time.Time{start.In(time.FixedZone("", 5400)), start.Add(-1), time.Unix(0, 0)} {
		records = append(records, &flow.Record{Time: at, Src: netip.MustParseAddr("192.0.2.1")})
	}
	for _, r := range records {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.AppendJSON([]byte("before "))
		if err != nil || string(got) != "before "+string(want) {
			t.Errorf("%v\n%s, want\n%s", err, got, want)
		}
	}
	if got, err := (&flow.Record{Time: start.AddDate(9000, 0, 0)}).AppendJSON([]byte("before")); err == nil || string(got) != "before" {
		t.Errorf("%q, %v for a time beyond the year 9999", got, err)
	}
}

// While a snapshot is in force, a describer describes each end and each side of a flow only once. The text
// that it keeps is the one that json.Marshal writes.
func TestDescriberKeeps(t *testing.T) {
	now := cluster(t)
	d := flow.NewDescriber("n1", func() *policy.Snapshot { return now })
	rule := &filter.Rule{Policy: "shop/db", Tier: filter.NetworkPolicyTier, Action: filter.RuleAccepts}
	entries := []*flow.Entry{
		entry(now, flow.Opened, "10.0.0.1", "10.0.0.2", 80), entry(now, flow.Ended, "192.0.2.2", "10.0.0.2", 80),
		entry(now, flow.Denied, "203.0.113.1", "192.0.2.1", 80), {Kind: flow.LeftOut, Time: start, Count: 3},
	}
	entries[0].Verdict = filter.Verdict{Action: filter.Allow, Ingress: filter.Side{Rule: rule}}
	for range 2 {
		for _, e := range entries {
			r := d.Record(e)
			want, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := d.Record(e).AppendJSON(nil); err != nil || string(got) != string(want) {
				t.Errorf("%v\n%s, want\n%s", err, got, want)
			}
			if again := d.Record(e); again.From != r.From || again.Into != r.Into || again.Ingress != r.Ingress {
				t.Errorf("%s is described again", want)
			}
		}
	}
	before := d.Record(entries[0]).From
	now = cluster(t)
	if after := d.Record(entries[0]).From; after == before || !reflect.DeepEqual(after, before) {
		t.Errorf("%+v in the next snapshot, %+v before", after, before)
	}
	// The number of sides that the describer keeps is bounded: these are more.
	for i := range 5000 {
		d.Record(&flow.Entry{Time: start, Verdict: filter.Verdict{Ingress: filter.Side{Rule: &filter.Rule{Index: i}}}})
	}
	buf := make([]byte, 0, 1<<12)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := d.Record(entries[0]).AppendJSON(buf); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a record", n)
	}
}

func BenchmarkEncode(b *testing.B) {
	s := cluster(b)
	rule := &filter.Rule{Policy: "shop/db", Tier: filter.NetworkPolicyTier, Action: filter.RuleAccepts}
	e := entry(s, flow.Opened, "10.0.0.1", "10.0.0.2", 80)
	e.Verdict = filter.Verdict{Action: filter.Allow, Reason: filter.RuleAllows, Ingress: filter.Side{Rule: rule}}
	describe := func() *flow.Describer { return flow.NewDescriber("n1", func() *policy.Snapshot { return s }) }
	b.Run("record", func(b *testing.B) {
		b.ReportAllocs()
		for d := describe(); b.Loop(); {
			d.Record(e)
		}
	})
	b.Run("json.Marshal", func(b *testing.B) {
		b.ReportAllocs()
		for d := describe(); b.Loop(); {
			if _, err := json.Marshal(d.Record(e)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("AppendJSON", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for d := describe(); b.Loop(); {
			var err error
			if buf, err = d.Record(e).AppendJSON(buf[:0]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("json.Unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		text, err := describe().Record(e).AppendJSON(nil)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			var r flow.Record
			if err := json.Unmarshal(text, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
