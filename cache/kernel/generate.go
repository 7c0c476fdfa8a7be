package kernel

// The objects are committed, so that building takes no clang. "make generate"
// compiles them anew; with clang 14 of Debian 12 they come out the same byte for
// byte.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -no-global-types -target bpfel,bpfeb program program.c -- -O2 -Wall -Werror -mcpu=v2
