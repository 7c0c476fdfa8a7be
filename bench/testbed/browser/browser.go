package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// pageTimeout bounds the work on a page. It only ends pages that hang, so that no test depends on the
// speed of the machine.
const pageTimeout = time.Minute

// browser is a Chromium without a window.
type browser struct{ ctx context.Context }

// start starts a browser. The function stop ends it.
func start(ctx context.Context) (b *browser, stop func(), err error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's sandbox refuses to run as root
	}
	ctx, end := chromedp.NewExecAllocator(ctx, options...)
	ctx, cancel := chromedp.NewContext(ctx)
	stop = func() { cancel(); end() }
	if err := chromedp.Do(ctx); err != nil {
		stop()
		return nil, nil, fmt.Errorf("start chromium: %w", err)
	}
	return &browser{ctx}, stop, nil
}

// screen describes the screen that shows a page.
type screen struct {
	width, height int64 // in CSS pixels
	scale         float64
	phone, dark   bool // phone: the screen has touch, and there is no mouse
}

// The screens of the tests and the pictures.
func desktop() screen { return screen{width: 1360, height: 820, scale: 1} }
func phone() screen   { return screen{width: 390, height: 780, scale: 2, phone: true} }

// inDark returns the same screen in the dark theme.
func (s screen) inDark() screen {
	s.dark = true
	return s
}

// use makes a tab emulate the screen.
func (s screen) use(ctx context.Context) error {
	if _, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: s.width, Height: s.height, DeviceScaleFactor: s.scale, Mobile: s.phone}); err != nil {
		return err
	}
	if _, err := chromedp.Call(ctx, emulation.SetTouchEmulationEnabled, emulation.SetTouchEmulationEnabledParams{Enabled: s.phone}); err != nil {
		return err
	}
	theme := "light"
	if s.dark {
		theme = "dark"
	}
	_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}})
	return err
}

// tab is a page in the browser.
type tab struct {
	ctx    context.Context
	mu     sync.Mutex
	faults []string // errors and violations of the content security policy
}

// open opens a file in a new tab, with a fragment, which may be empty.
func (b *browser) open(file, fragment string, s screen) (t *tab, stop func(), err error) {
	ctx, stop := chromedp.NewContext(b.ctx)
	t = &tab{ctx: ctx}
	if err := t.load(file, fragment, s); err != nil {
		stop()
		return nil, nil, fmt.Errorf("open %s: %w", file, err)
	}
	return t, stop, nil
}

func (t *tab) load(file, fragment string, s screen) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	if err := chromedp.Listen(t.ctx, t.listen); err != nil {
		return err
	}
	if _, err := chromedp.Call(t.ctx, log.Enable, cdp.Empty{}); err != nil {
		return err
	}
	if err := s.use(t.ctx); err != nil {
		return err
	}
	address := url.URL{Scheme: "file", Path: path}
	text := address.String()
	if fragment != "" {
		text += "#" + fragment
	}
	return t.do(chromedp.Navigate(text))
}

// listen records the events that are errors.
func (t *tab) listen(event any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		t.faults = append(t.faults, exceptionText(e.ExceptionDetails))
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError {
			t.faults = append(t.faults, e.Entry.Text)
		}
	}
}

func (t *tab) do(steps ...chromedp.Action[chromedp.Void]) error {
	ctx, cancel := context.WithTimeout(t.ctx, pageTimeout)
	defer cancel()
	return chromedp.Do(ctx, steps...)
}

// eval evaluates JavaScript. If the result is a promise, eval waits for it.
func eval[T any](t *tab, script string) (result T, err error) {
	ctx, cancel := context.WithTimeout(t.ctx, pageTimeout)
	defer cancel()
	if result, err = chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise)); err != nil {
		return result, fmt.Errorf("evaluate %s: %w", script, err)
	}
	return result, nil
}

// waitFor waits until a condition in JavaScript is true.
func (t *tab) waitFor(condition string) error {
	if err := t.do(chromedp.Poll[chromedp.Void](condition, chromedp.WithPollingTimeout(pageTimeout))); err != nil {
		return fmt.Errorf("wait for %s: %w", condition, err)
	}
	return nil
}

// picture writes the visible part of the page as a WebP or PNG file, by the ending of its name.
func (t *tab) picture(file string) error {
	quality := int64(90)
	format := page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatWebp, Quality: &quality}
	if filepath.Ext(file) == ".png" {
		format = page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatPng}
	}
	image, err := chromedp.Call(t.ctx, page.CaptureScreenshot, format)
	if err != nil {
		return fmt.Errorf("take the picture %s: %w", file, err)
	}
	return os.WriteFile(file, image.Data, 0o644)
}

func exceptionText(d *runtime.ExceptionDetails) string {
	if d.Exception != nil && d.Exception.Description != "" {
		return d.Exception.Description
	}
	return d.Text
}
