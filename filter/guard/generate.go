package guard

// The objects are committed, as those of the package cache/bpf are; "make
// generate" compiles them.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -no-global-types -target bpfel,bpfeb program program.c -- -O2 -Wall -Werror -mcpu=v2
