package apiserver

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/remotecommand"
)

// Command is a command that a client executes in a pod.
type Command struct {
	Pod       types.NamespacedName
	Container string
	Args      []string
	// Stdin has the data that the client sends. It ends when the client closes the connection or the
	// stream.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// The numbers of channels in the protocol v5.channel.k8s.io. The first byte of a message is its channel.
const (
	stdinChannel  = 0
	stdoutChannel = 1
	stderrChannel = 2
	errorChannel  = 3
	// closeChannel closes the channel whose number follows.
	closeChannel = 255
)

// exec answers requests to execute a command in a pod, by Options.Exec. It returns false, without an
// answer, for other requests and if Options.Exec is nil.
func (s *Server) exec(w http.ResponseWriter, req *http.Request) bool {
	path, is := strings.CutSuffix(req.URL.Path, "/exec")
	parts := strings.Split(strings.TrimPrefix(path, "/api/v1/namespaces/"), "/")
	if !is || s.opts.Exec == nil || len(parts) != 3 || parts[1] != "pods" {
		return false
	}
	name := types.NamespacedName{Namespace: parts[0], Name: parts[2]}
	if _, status := s.get(s.resources["pods"], name); status != nil {
		encodingFor(req).answer(w, int(status.Code), status)
		return true
	}
	upgrader := websocket.Upgrader{Subprotocols: []string{remotecommand.StreamProtocolV5Name}}
	conn, err := upgrader.Upgrade(w, req, nil)
	if err != nil {
		return true // the upgrader has answered
	}
	defer conn.Close()
	var mu sync.Mutex
	in, input := io.Pipe()
	defer in.Close() // so that readInput does not wait for a reader
	go readInput(conn, input)
	status := s.opts.Exec(Command{
		Pod: name, Container: req.FormValue("container"), Args: req.URL.Query()["command"], Stdin: in,
		Stdout: &channel{conn, &mu, stdoutChannel}, Stderr: &channel{conn, &mu, stderrChannel},
	})
	text, err := json.Marshal(commandStatus(status))
	if err == nil {
		_, err = (&channel{conn, &mu, errorChannel}).Write(text)
	}
	if err == nil {
		_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	}
	return true
}

// readInput passes the data on that the client sends for the standard input of a command.
func readInput(conn *websocket.Conn, input *io.PipeWriter) {
	defer input.Close()
	for {
		_, message, err := conn.ReadMessage()
		switch {
		case err != nil, len(message) == 2 && message[0] == closeChannel && message[1] == stdinChannel:
			return
		case len(message) > 1 && message[0] == stdinChannel:
			if _, err := input.Write(message[1:]); err != nil {
				return // the command has ended
			}
		}
	}
}

func commandStatus(code int) *metav1.Status {
	if code == 0 {
		return &metav1.Status{Status: metav1.StatusSuccess}
	}
	return &metav1.Status{
		Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason,
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(code)}}},
	}
}

// channel is a stream to the client: a Writer that sends messages of one channel.
type channel struct {
	conn *websocket.Conn
	mu   *sync.Mutex // guards the writes to conn, which all channels share
	id   byte
}

func (c *channel) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.WriteMessage(websocket.BinaryMessage, append([]byte{c.id}, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}
