package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// inForce is how long a policy may take from its file to being in force. It is
// the bound of what takes some ten milliseconds.
const inForce = 20 * time.Second

// stage is where the steps are shown.
type stage struct {
	*cluster
	*printer
	dir       string // the agent's folder of manifests
	agent     *agent
	keepGoing bool

	shown, probed int
}

// open writes the manifests of namespaces and pods and starts the agent. The
// caller stops the agent, if there is one.
func (s *stage) open(ctx context.Context, sluice string, verbose bool) error {
	text, err := s.manifests()
	if err != nil {
		return err
	}
	if err := s.save("cluster.yaml", text); err != nil {
		return err
	}
	echo := io.Discard
	if verbose {
		echo = s.out
	}
	if s.agent, err = startAgent(s.lab.Nodes[0].Host, sluice, s.dir, echo); err != nil {
		return err
	}
	// Both lines, because the second comes after the first.
	return s.await(ctx, "sluice is ready", func() bool { return s.agent.ready && s.agent.snapshot > 0 })
}

// save writes a file in one go: the agent must never see half of it.
func (s *stage) save(name, text string) error {
	hidden := filepath.Join(s.dir, "."+name)
	err := os.WriteFile(hidden, []byte(text), 0o644)
	if err == nil {
		err = os.Rename(hidden, filepath.Join(s.dir, name))
	}
	if err != nil {
		return fmt.Errorf("write a manifest: %w", err)
	}
	return nil
}

func (s *stage) await(ctx context.Context, what string, condition func() bool) error {
	limited, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	if err := s.agent.await(limited, condition); err != nil {
		return fmt.Errorf("wait until %s: %w", what, err)
	}
	return nil
}

// play shows the steps and returns how many probes did not do as promised.
func (s *stage) play(ctx context.Context, steps []step) (wrong int, err error) {
	probes := s.probes()
	for i, st := range steps {
		promises, err := st.parsePromises()
		if err != nil {
			return wrong, err
		}
		took, err := s.apply(ctx, st)
		if err != nil {
			return wrong, fmt.Errorf("step %s: %w", st.name, err)
		}
		if err := s.begin(st, i+1, len(steps), took); err != nil {
			return wrong, err
		}
		result := judge(ask(ctx, probes, s.agent), promises)
		if ctx.Err() != nil {
			return wrong, ctx.Err()
		}
		s.result(st, s.cluster, result)
		s.shown++
		s.probed += len(probes)
		wrong += len(result.wrong)
		if wrong > 0 && !s.keepGoing {
			break
		}
	}
	return wrong, nil
}

// apply saves the policies of a step and waits until they are in force. The
// agent says so when no verdict by the old ones can take effect any more.
func (s *stage) apply(ctx context.Context, st step) (took time.Duration, err error) {
	text, err := st.yaml()
	if err != nil {
		return 0, err
	}
	before := s.agent.forget()
	if len(st.policies) == 0 {
		return 0, nil // the demo begins like this
	}
	began := time.Now()
	if err := s.save("policies.yaml", text); err != nil {
		return 0, err
	}
	err = s.await(ctx, "the policies are in force", func() bool {
		return s.agent.snapshot > before && s.agent.policies == uint64(len(st.policies))
	})
	return time.Since(began), err
}

// judgement is the outcome of a step held against its promises.
type judgement struct {
	outcomes []outcome
	promises []promise
	decided  []int // by promise: how many probes it decides
	kept     []int // and how many of them did as promised
	wrong    []fault
}

// fault is a probe that did not do as promised.
type fault struct {
	outcome
	promised promise
	what     string
}

func judge(outcomes []outcome, promises []promise) judgement {
	j := judgement{outcomes: outcomes, promises: promises, decided: make([]int, len(promises)), kept: make([]int, len(promises))}
	for _, o := range outcomes {
		i := decides(promises, o.probe)
		j.decided[i]++
		if what := o.fault(promises[i].reach); what != "" {
			j.wrong = append(j.wrong, fault{o, promises[i], what})
		} else {
			j.kept[i]++
		}
	}
	return j
}

// fault says what is wrong with an outcome; nothing if it is as promised. That a
// denied one was denied by the agent, and not lost, is part of it.
func (o outcome) fault(reach bool) string {
	switch {
	case o.reached() && !reach:
		return "got through"
	case o.reached():
		return ""
	case reach && o.denial != nil:
		return "was denied: " + o.denial.String()
	case reach && o.By != "":
		return "was answered by " + o.By
	case reach:
		return fmt.Sprintf("did not get through: %v", o.Err)
	case o.denial == nil:
		return fmt.Sprintf("did not get through, but the agent did not deny it: %v", o.Err)
	}
	return ""
}
