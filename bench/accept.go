package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// acceptQueues is the number of queues that the accepting program reads: the default of sluice,
// so that the two programs differ only in what they do with packets.
const acceptQueues = 4

// acceptRules send the first packet of each connection to the accepting program.
const acceptRules = `*mangle
-A POSTROUTING -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-A POSTROUTING -j NFQUEUE --queue-balance 0:3
COMMIT
`

// acceptCommand returns the command of the contender that accepts every packet without a
// decision. It uses go-nfqueue as its documentation shows, with one system call to read each
// packet and one to answer it.
func acceptCommand(e env) *cobra.Command {
	return &cobra.Command{
		Use: "accept", Hidden: true, Args: cobra.NoArgs,
		Short: "Accept everything in NFQUEUE 0 to 3 of this network namespace",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return accept(cmd.Context(), func() { fmt.Fprintln(e.stdout, ready) })
		},
	}
}

// accept accepts all packets until ctx ends. It calls started() when the queues are bound.
func accept(ctx context.Context, started func()) error {
	failed := make(chan error, acceptQueues)
	for i := range uint16(acceptQueues) {
		nf, err := nfqueue.Open(&nfqueue.Config{NfQueue: i, MaxPacketLen: 256, MaxQueueLen: 4096, Copymode: nfqueue.NfQnlCopyPacket})
		if err != nil {
			return fmt.Errorf("open queue %d: %w", i, err)
		}
		defer nf.Close()
		hook := func(a nfqueue.Attribute) int {
			if a.PacketID == nil {
				return 0
			}
			if err := nf.SetVerdict(*a.PacketID, nfqueue.NfAccept); err != nil {
				failed <- fmt.Errorf("answer queue %d: %w", i, err)
				return 1
			}
			return 0
		}
		if err := nf.RegisterWithErrorFunc(ctx, hook, func(err error) int {
			switch {
			case ctx.Err() != nil:
				return 1
			case errors.Is(err, unix.ENOBUFS):
				return 0 // keep reading: the error means that packets were lost, as in a flood
			}
			failed <- fmt.Errorf("read queue %d: %w", i, err)
			return 1
		}); err != nil {
			return fmt.Errorf("bind queue %d: %w", i, err)
		}
	}
	started()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}
