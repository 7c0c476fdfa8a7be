package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata/shop run every command on a copy of testdata/shop/repo, the repository of a
// shop, as the shop's team and platform team would.
func TestScriptsShop(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/shop",
		Setup:               func(e *testscript.Env) error { return os.CopyFS(e.WorkDir, os.DirFS("testdata/shop/repo")) },
		UpdateScripts:       os.Getenv("SLUICE_UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}
