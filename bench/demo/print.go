package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// printer writes the output of the demo.
type printer struct {
	out    io.Writer
	colour bool
}

// Parameters of the terminal's escape sequence for colors (ECMA-48, SGR).
const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint returns the text in the given color, or unchanged if colors are off.
func (p *printer) paint(colour, text string) string {
	if !p.colour || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (p *printer) printf(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

// wrap prints a text in lines of at most 84 characters.
func (p *printer) wrap(text string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > 84 {
			p.printf("%s", line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	p.printf("%s", line)
}

func (p *printer) intro(c *cluster) {
	p.printf("%s\n", p.paint(bold, "Sluice: Kubernetes NetworkPolicy on real packets, without a cluster"))
	p.wrap(`Sluice runs on each node of a cluster. It judges the first packet of every new
		connection from or to a pod by the NetworkPolicies, and leaves the rest of the
		connection to the kernel.`)
	p.printf("")
	p.wrap("Here, network namespaces play one node, five pods on it and two hosts outside the cluster:")
	p.printf("")
	for _, h := range c.hosts {
		var what []string
		if namespace, _, pod := strings.Cut(h.name, "/"); pod {
			what = append(what, labels("namespace "+namespace, namespace))
		}
		for _, k := range slices.Sorted(maps.Keys(h.labels)) {
			what = append(what, k+"="+h.labels[k])
		}
		for port, name := range h.portName {
			what = append(what, fmt.Sprintf("calls port %d %s", port, name))
		}
		switch {
		case h.name == nodeName:
			what = append(what, "the node; sluice run is started on it")
		case h.isOutside():
			what = append(what, "outside")
		}
		p.printf("  %-12s %s  %s", h.name, c.addrText(h), strings.Join(what, ", "))
	}
	p.printf("")
	p.wrap(`Sluice follows a directory of manifests. Each step saves a file with policies there. As
		soon as they are in force, every host opens a TCP connection and sends a UDP datagram
		to every port of every other host, over ` + c.familyText() + ".")
	p.printf("\nIn the tables, the client is on the left and the server above:")
	p.printf("  %s   is reached by TCP and UDP      %s   is reached only by TCP", p.paint(green, "yes"), p.paint(yellow, "TCP"))
	p.printf("  %s    is not reached; the letter refers to the reason below the table", p.paint(red, "no"))
	p.printf("  %s     is not tried: such packets do not pass the node", p.paint(faint, "."))
}

// addrText returns the addresses of a host, in columns.
func (c *cluster) addrText(h *host) string {
	var texts []string
	for _, family := range c.families {
		texts = append(texts, fmt.Sprintf("%-*s", [...]int{11, 15}[family], h.Addrs()[family]))
	}
	return strings.Join(texts, " ")
}

// familyText names the address families of the probes.
func (c *cluster) familyText() string {
	var names []string
	for _, family := range c.families {
		names = append(names, familyNames[family])
	}
	return strings.Join(names, " and over ")
}

// kept prints how to use the lab, which stays until the interrupt.
func (p *printer) kept(c *cluster, dir, socket, sluice string) {
	p.printf("\n%s", p.paint(bold, "The node, the pods and the agent are kept until you press Ctrl-C. In another terminal, as root:"))
	p.printf("\nChange the policies; they are in force when the file is saved:\n  %s/policies.yaml", dir)
	p.printf("\nEnter a host:")
	for _, h := range c.hosts {
		p.printf("  nsenter --net=/proc/%d/fd/%d   # %s", os.Getpid(), h.NetNS(), h.name)
	}
	web, db := c.hosts[0], c.hosts[2]
	addr := db.Addrs()[c.families[0]]
	p.printf("\nConnect from %s to %s, and ask what is allowed and why:", web.name, db.name)
	p.printf("  nsenter --net=/proc/%d/fd/%d timeout 2 bash -c '</dev/tcp/%s/%d' && echo reached", os.Getpid(), web.NetNS(), addr, db.ports[0])
	p.printf("  %s explain -f %s --from %s --to %s --port %d", sluice, dir, web.name, db.name, db.ports[0])
	p.printf("\nSee who was denied last, and what happens from now on:")
	flag := ""
	if socket != defaultSocket {
		flag = " --socket " + socket
	}
	p.printf("  %s denied%s", sluice, flag)
	p.printf("  %s observe -f%s", sluice, flag)
}

// labels returns the text followed by the labels of a namespace.
func labels(text, namespace string) string {
	for _, ns := range namespaces {
		if ns.name == namespace {
			for _, k := range slices.Sorted(maps.Keys(ns.labels)) {
				text += " (" + k + "=" + ns.labels[k] + ")"
			}
		}
	}
	return text
}

// printStep prints the title, meaning and policies of a step.
func (p *printer) printStep(st step, number, of int, took time.Duration) error {
	title := fmt.Sprintf("── %d/%d  %s ", number, of, st.title)
	p.printf("\n%s\n", p.paint(bold, title+strings.Repeat("─", max(0, 84-len([]rune(title))))))
	p.wrap(st.meaning)
	text, err := st.yaml()
	if err != nil {
		return err
	}
	if text == "" {
		return nil
	}
	p.printf("")
	for line := range strings.Lines(text) {
		fmt.Fprint(p.out, p.paint(faint, "    "+strings.TrimRight(line, "\n"))+"\n")
	}
	p.printf("\nIn force %d ms after the file was saved.", took.Milliseconds())
	return nil
}

// result prints the outcome of a step.
func (p *printer) result(st step, c *cluster, j comparison) {
	p.printf("")
	p.table(c, j)
	p.printf("\n%-48s %s", "What is expected of the policies", "and what happened")
	for i, pr := range j.expectations {
		word, verb := p.paint(green, "yes"), "got through"
		if !pr.reach {
			word, verb = p.paint(red, "no")+" ", "were denied"
		}
		mark := p.paint(green, "as expected")
		if j.met[i] != j.decided[i] {
			mark = p.paint(red, "WRONG")
		}
		p.printf("  %s  %-43s %3d of %3d attempts %s: %s", word, pr, j.met[i], j.decided[i], verb, mark)
	}
	p.faults(j.wrong)
	p.printf("")
	p.wrap(st.see)
}

// faults prints the wrong probes, up to a limit.
func (p *printer) faults(wrong []fault) {
	const most = 12
	for i, f := range wrong {
		if i == most {
			p.printf("  and %d more", len(wrong)-most)
			return
		}
		p.printf("  %s %s %s, which is not as expected (%s)", p.paint(red, "WRONG:"), f.probe, f.what, f.expected)
	}
}

func (p *printer) summary(shown, of, probed, wrong int, took time.Duration) {
	p.printf("")
	seconds := took.Round(100 * time.Millisecond)
	steps := fmt.Sprintf("%d steps", shown)
	if shown == 1 {
		steps = "1 step"
	}
	if wrong == 0 {
		p.printf("%s", p.paint(bold, fmt.Sprintf("All as expected: %s, %d attempts, none wrong, in %v.", steps, probed, seconds)))
		return
	}
	text := fmt.Sprintf("NOT as expected: %d of %d attempts are wrong, in %d of %d steps shown.", wrong, probed, shown, of)
	if shown < of {
		text += " Show the others with --keep-going."
	}
	p.printf("%s", p.paint(red, text))
}
