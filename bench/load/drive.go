package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// Order is a load that a client runs for a Driver.
type Order struct {
	Do string `json:"do"` // tcp, udp, stream, flood or probe
	Target
	Clients int            `json:"clients,omitempty"` // used only if Do is tcp or udp
	Ranges  []netip.Prefix `json:"ranges,omitempty"`  // used only if Do is flood
	For     time.Duration  `json:"for"`
}

// Answer is the result of an order.
type Answer struct {
	Error string `json:"error,omitempty"`
	Outcome
	Seen
}

// Do executes one order.
func (c *Client) Do(ctx context.Context, o Order) (a Answer, err error) {
	switch o.Do {
	case "tcp":
		a.Outcome, err = c.Connect(ctx, o.Target, o.Clients, o.For)
	case "udp":
		a.Outcome, err = c.Request(ctx, o.Target, o.Clients, o.For)
	case "stream":
		a.Outcome, err = Stream(ctx, o.Target, o.For)
	case "flood":
		a.Outcome, err = Flood(ctx, o.Ranges, o.For)
	case "probe":
		a.Seen, err = Probe(ctx, o.Target, o.For)
	default:
		err = fmt.Errorf("%q is not an order: give tcp, udp, stream, flood or probe", o.Do)
	}
	return a, err
}

// ServeOrders reads and executes orders until EOF, and writes an answer for each order. Orders
// and answers are lines of JSON. A harness that sends its orders to a running process does not
// measure the start of a process.
func ServeOrders(ctx context.Context, in io.Reader, out io.Writer) error {
	c, lines, answers := new(Client), bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		var o Order
		var a Answer
		err := json.Unmarshal(lines.Bytes(), &o)
		if err == nil {
			a, err = c.Do(ctx, o)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("answer an order: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read orders: %w", err)
	}
	return nil
}

// Driver sends orders to a process that runs ServeOrders. Only one goroutine at a time may
// use a Driver.
type Driver struct {
	orders  *json.Encoder
	answers *json.Decoder
}

// NewDriver returns a driver for the process at the other end of the two streams.
func NewDriver(orders io.Writer, answers io.Reader) *Driver {
	return &Driver{json.NewEncoder(orders), json.NewDecoder(answers)}
}

// Do sends an order to the process and returns its answer.
func (d *Driver) Do(o Order) (a Answer, err error) {
	if err = d.orders.Encode(o); err == nil {
		err = d.answers.Decode(&a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		return a, fmt.Errorf("load %s to %s: %w", o.Do, o.To, err)
	}
	return a, nil
}
