package bpf

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

// stamped is the input of a stamp as three words, so that a test can flip any bit: the two IDs, and
// one word for the port, protocol and transport.
type stamped [3]uint64

func (w *stamped) stamp(s *secrets) uint64 {
	k := policy.IDKey{Src: policy.ID(w[0]), Dst: policy.ID(w[1]), Port: uint16(w[2] >> 16), Protocol: filter.Protocol(w[2] >> 8), Transport: filter.Transport(w[2])}
	return s.stamp(&k)
}

// inputBits is the number of bits of each word that are part of the input.
var inputBits = [3]int{64, 64, 32}

// flips returns XOR masks for a word of the given number of bits: 0, all masks with one bit,
// and all masks with two bits.
func flips(bits int) (masks []uint64) {
	masks = append(masks, 0)
	for one := range bits {
		masks = append(masks, 1<<one)
		for two := range one {
			masks = append(masks, 1<<one|1<<two)
		}
	}
	return masks
}

// differ computes the stamps of variants of base, and returns an error if two variants have the
// same stamp. In a variant, only the words base[at] and base[at+1] differ from base: up to two
// bits of one of these words and up to one bit of the other.
func differ(base stamped, at int, stamp func(*stamped) uint64) error {
	seen := make(map[uint64]stamped)
	for _, few := range [][2]int{{at, at + 1}, {at + 1, at}} {
		for _, two := range flips(inputBits[few[0]]) {
			for bit := -1; bit < inputBits[few[1]]; bit++ {
				in := base
				in[few[0]] ^= two
				if bit >= 0 {
					in[few[1]] ^= 1 << bit
				}
				h := stamp(&in)
				if other, ok := seen[h]; ok && other != in {
					return fmt.Errorf("%x and %x have the same stamp", in, other)
				}
				seen[h] = in
			}
		}
	}
	return nil
}

// Two inputs have different stamps if they differ only in a few bits of two neighbouring
// words. The test uses three sets of random secrets; the other words are all 0 or random.
func TestStampsDiffer(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 0))
	for round := range 3 {
		s := new(secrets)
		for i := range s {
			s[i] = random.Uint64()
		}
		var base stamped // all words are 0 in the first round: many keys consist mostly of zeros
		for i := range base {
			if round > 0 {
				base[i] = random.Uint64() >> (64 - inputBits[i])
			}
		}
		for at := range len(base) - 1 {
			if err := differ(base, at, func(w *stamped) uint64 { return w.stamp(s) }); err != nil {
				t.Error(err)
			}
		}
	}
}

// This test shows that differ() detects a bad hash, a chain of multiplications. In such a
// chain, a change of one word and a suitable change of the next word cancel out, whatever the
// start value is. differ() must find such a collision.
func TestStampsOfAChainCollide(t *testing.T) {
	chain := func(w *stamped) uint64 {
		h := uint64(0x0123456789abcdef)
		for _, word := range w {
			h = (h ^ word) * 0x9e3779b97f4a7c15
			h ^= h >> 29
		}
		return h &^ 1
	}
	if differ(stamped{}, 0, chain) == nil {
		t.Error("no collision found")
	}
}

// Other secrets give another stamp. If the two ends of a key exchange their IDs, the stamp
// changes too. This test covers only the Go code. TestAgreesWithUserSpace covers the C code: if
// the kernel computed other stamps than user space, it would use no verdict of user space.
func TestStampDependsOnAll(t *testing.T) {
	a, b := newSecrets(), newSecrets()
	k, back := policy.IDKey{Src: 1, Dst: 2}, policy.IDKey{Src: 2, Dst: 1}
	if a.stamp(&k) == b.stamp(&k) || a.stamp(&k) == a.stamp(&back) {
		t.Error("other secrets, or exchanged IDs, give the same stamp")
	}
}
