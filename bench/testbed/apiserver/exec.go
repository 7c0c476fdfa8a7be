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
	// Stdin has no data, and ends when the client closes the connection.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// The numbers of channels in the protocol v5.channel.k8s.io. The first byte of a message is its channel.
const (
	stdoutChannel = 1
	stderrChannel = 2
	errorChannel  = 3
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
	in, gone := io.Pipe()
	go func() {
		for {
			if _, _, err := conn.ReadMessage(); err != nil {
				gone.Close()
				return
			}
		}
	}()
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
