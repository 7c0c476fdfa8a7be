package guard

// The compiled objects are committed, like the objects of the package cache/bpf;
// "make generate" compiles them again.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -no-global-types -target bpfel,bpfeb program program.c -- -O2 -Wall -Werror -mcpu=v2
