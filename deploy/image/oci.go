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

// image describes an image to write, for one or more architectures.
type image struct {
	name, version, entrypoint string
	source                    string // the URL of the source code; may be empty
	platforms                 []platform
}

// platform is the image for one architecture.
type platform struct {
	arch   string
	layers []*tree
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

// writeImage writes an image as a tar archive of the OCI image layout. With one architecture,
// index.json refers to its manifest, and the archive also has the manifest.json that older versions of
// "docker load" need. With several architectures, index.json refers to an index of their manifests,
// from which a node selects the one for its architecture.
func writeImage(out io.Writer, img image) error {
	_, tag, ok := strings.Cut(img.name[strings.LastIndex(img.name, "/")+1:], ":")
	if !ok {
		return fmt.Errorf("the name %s has no tag: append one after a colon, as in localhost/sluice:dev", img.name)
	}
	a := archive{}
	var manifests []descriptor
	var legacy map[string]any
	for _, p := range img.platforms {
		manifest, old, err := a.platform(img, p)
		if err != nil {
			return err
		}
		manifests, legacy = append(manifests, manifest), old
	}
	top := manifests[0]
	documents := map[string]any{"oci-layout": map[string]string{"imageLayoutVersion": "1.0.0"}}
	if len(manifests) == 1 {
		documents["manifest.json"] = []any{legacy}
	} else {
		var err error
		if top, err = a.document(indexType, map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": manifests, "annotations": img.labels()}); err != nil {
			return err
		}
	}
	// containerd takes the image's name from the first annotation. Other tools take the tag from
	// the second one.
	top.Annotations = map[string]string{"io.containerd.image.name": img.name, "org.opencontainers.image.ref.name": tag}
	documents["index.json"] = map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []descriptor{top}}
	for name, v := range documents {
		var err error
		if a[name], err = json.Marshal(v); err != nil {
			return err
		}
	}
	return a.write(out)
}

func (img image) labels() map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title": "Sluice", "org.opencontainers.image.version": img.version,
		"org.opencontainers.image.description": "Enforces Kubernetes NetworkPolicy on a node",
		"org.opencontainers.image.licenses":    "Apache-2.0",
	}
	if img.source != "" {
		labels["org.opencontainers.image.source"] = img.source
	}
	return labels
}

// platform adds the layers, the config and the manifest of an image for one architecture. It returns
// the manifest's descriptor, and the entry of manifest.json.
func (a archive) platform(img image, p platform) (manifest descriptor, legacy map[string]any, err error) {
	var layers []descriptor
	var diffIDs, paths []string
	for _, t := range p.layers {
		d, diffID, err := a.layer(t)
		if err != nil {
			return manifest, nil, err
		}
		layers, diffIDs, paths = append(layers, d), append(diffIDs, diffID), append(paths, blobPath(d))
	}
	config, err := a.document(configType, map[string]any{
		"architecture": p.arch, "os": "linux",
		"config": map[string]any{
			"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Entrypoint": []string{img.entrypoint}, "Labels": img.labels(),
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return manifest, nil, err
	}
	manifest, err = a.document(manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers, "annotations": img.labels(),
	})
	manifest.Platform = map[string]string{"architecture": p.arch, "os": "linux"}
	return manifest, map[string]any{"Config": blobPath(config), "RepoTags": []string{img.name}, "Layers": paths}, err
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
