package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Media types of the parts of an image (OCI image-spec v1.1, media-types.md).
const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// image describes an image to write.
type image struct {
	name, version, arch, entrypoint string
	layers                          []*tree
}

// descriptor refers to a blob (image-spec, descriptor.md).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

// archive collects the blobs of an image layout (image-spec, image-layout.md).
type archive map[string][]byte

// blob adds a blob, and returns its descriptor.
func (a archive) blob(mediaType string, data []byte) descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	a["blobs/sha256/"+sum] = data
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(data)}
}

// document adds a value as a blob of JSON.
func (a archive) document(mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	return a.blob(mediaType, data), err
}

// layer adds a compressed layer. diffID is the digest of the uncompressed content.
func (a archive) layer(t *tree) (d descriptor, diffID string, err error) {
	var packed bytes.Buffer
	sum := sha256.New()
	zip, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return d, "", err
	}
	if err := t.writeTar(io.MultiWriter(zip, sum)); err != nil {
		return d, "", err
	}
	if err := zip.Close(); err != nil {
		return d, "", err
	}
	return a.blob(layerType, packed.Bytes()), fmt.Sprintf("sha256:%x", sum.Sum(nil)), nil
}

// writeImage writes an image as a tar archive with an OCI image layout. The archive also has a
// manifest.json, which older versions of "docker load" need.
func writeImage(out io.Writer, img image) error {
	a := archive{}
	labels := map[string]string{
		"org.opencontainers.image.title": "Sluice", "org.opencontainers.image.version": img.version,
		"org.opencontainers.image.description": "Enforces Kubernetes NetworkPolicy on a node",
	}
	var layers []descriptor
	var diffIDs, paths []string
	for _, t := range img.layers {
		d, diffID, err := a.layer(t)
		if err != nil {
			return err
		}
		layers, diffIDs, paths = append(layers, d), append(diffIDs, diffID), append(paths, blobPath(d))
	}
	config, err := a.document(configType, map[string]any{
		"architecture": img.arch, "os": "linux",
		"config": map[string]any{
			"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Entrypoint": []string{img.entrypoint}, "Labels": labels,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := a.document(manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers, "annotations": labels,
	})
	if err != nil {
		return err
	}
	_, tag, ok := strings.Cut(img.name[strings.LastIndex(img.name, "/")+1:], ":")
	if !ok {
		return fmt.Errorf("the name %s has no tag: append one after a colon, as in localhost/sluice:dev", img.name)
	}
	manifest.Platform = map[string]string{"architecture": img.arch, "os": "linux"}
	// containerd takes the image's name from the first annotation. Other tools take the tag from
	// the second one.
	manifest.Annotations = map[string]string{"io.containerd.image.name": img.name, "org.opencontainers.image.ref.name": tag}
	for name, v := range map[string]any{
		"oci-layout":    map[string]string{"imageLayoutVersion": "1.0.0"},
		"index.json":    map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []descriptor{manifest}},
		"manifest.json": []any{map[string]any{"Config": blobPath(config), "RepoTags": []string{img.name}, "Layers": paths}},
	} {
		if a[name], err = json.Marshal(v); err != nil {
			return err
		}
	}
	return a.write(out)
}

func blobPath(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

// write writes the blobs and documents as a tar archive.
func (a archive) write(out io.Writer) error {
	w := tar.NewWriter(out)
	var names []string
	for name := range a {
		names = append(names, name)
	}
	// oci-layout comes first, so that readers of a stream recognise the format.
	slices.SortFunc(names, func(x, y string) int {
		if (x == "oci-layout") != (y == "oci-layout") {
			if x == "oci-layout" {
				return -1
			}
			return 1
		}
		return strings.Compare(x, y)
	})
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(a[name])), Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := w.Write(a[name]); err != nil {
			return err
		}
	}
	return w.Close()
}
