package main

import (
	"github.com/spf13/pflag"

	"sluice/filter/policy"
)

func addLimitFlags(fs *pflag.FlagSet, opts *runOptions) {
	l := policy.DefaultLimits()
	opts.policyMemory, opts.policiesMemory = int(l.Policy>>20), int(l.Policies>>20)
	fs.Var(newNumberFlag(&opts.policyMemory, 0, 1<<20), "policy-memory", `how many MiB a policy may take compiled, as estimated from its size; one beyond allows
nothing for the pods that it selects, and is reported; 0 for no limit`)
	fs.Var(newNumberFlag(&opts.policiesMemory, 0, 1<<20), "policies-memory", `how many MiB all policies may take so; beyond, the largest of the namespace whose policies
take most are treated like this; 0 for no limit`)
}

// limits are what policies may take.
func (o *runOptions) limits() policy.Limits {
	return policy.Limits{Policy: int64(o.policyMemory) << 20, Policies: int64(o.policiesMemory) << 20}
}
