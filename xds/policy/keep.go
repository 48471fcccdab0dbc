package policy

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"sallyport/certs/statedir"
	"sallyport/xds/document"
)

// What is in force is kept in the control plane's state folder, so that a restart does not lift what a broken or empty file
// would not have lifted while the process ran. It holds the documents as text, and the files that they refer to (key sets,
// certificates with their keys): hence the rules of package statedir, 0700 and 0600.

const (
	keptFolder  = "policies"
	keptFile    = "in-force.json"
	keptMax     = 64 << 20
	keptVersion = 1
)

// keeper keeps what is in force. Used by one goroutine.
type keeper struct {
	dir    *statedir.Dir
	folder string            // absolute path of the folder of policies
	digest [sha256.Size]byte // of what was written or read last
}

// keptSet is the file.
type keptSet struct {
	Version int           `json:"version"`
	Folder  string        `json:"folder"` // what was kept of another folder is of no concern
	Files   []keptDocFile `json:"files"`
}

type keptDocFile struct {
	Path      string         `json:"path"` // below the folder
	Documents []keptDocument `json:"documents"`
}

type keptDocument struct {
	Text string            `json:"text"`
	Refs map[string][]byte `json:"refs,omitempty"` // content of the files that it refers to, by what is written in it
}

func openKeeper(state, folder string) (*keeper, error) {
	abs, err := filepath.Abs(folder)
	if err != nil {
		return nil, err
	}
	parent, err := statedir.Open(state)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	dir, err := parent.Sub(keptFolder)
	if err != nil {
		return nil, err
	}
	return &keeper{dir: dir, folder: abs}, nil
}

func (k *keeper) close() { _ = k.dir.Close() }

// load reads what was kept of dir; nil where there is nothing. It is an error where not all of it can be read.
func (k *keeper) load(dir string) (map[string][]*entry, error) {
	data, err := k.dir.Read(keptFile, keptMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	name := filepath.Join(k.dir.Path(), keptFile)
	var set keptSet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", name, err)
	}
	if set.Version != keptVersion {
		return nil, fmt.Errorf("%s has version %d, this program knows version %d", name, set.Version, keptVersion)
	}
	if set.Folder != k.folder {
		return nil, nil
	}
	k.digest = sha256.Sum256(data)
	files := map[string][]*entry{}
	for _, f := range set.Files {
		path := filepath.Join(dir, f.Path)
		for _, d := range f.Documents {
			docs, p := document.Parse(path, []byte(d.Text))
			if p != nil {
				return nil, p
			}
			for _, doc := range docs {
				e := readDocument(doc, kept(d.Refs))
				if e.object == nil {
					return nil, fmt.Errorf("%s: %w", name, e.problems)
				}
				files[path] = append(files[path], e)
			}
		}
	}
	return files, nil
}

// kept opens files that a document refers to from what was kept with it.
func kept(refs map[string][]byte) opener {
	return func(written, path string) ([]byte, *document.Problem) {
		if data, ok := refs[written]; ok {
			return data, nil
		}
		return nil, &document.Problem{File: path, Text: "was not kept"}
	}
}

// save writes what is in force, if it is not what was written last.
func (k *keeper) save(dir string, files map[string][]*entry) error {
	set := keptSet{Version: keptVersion, Folder: k.folder, Files: []keptDocFile{}}
	for _, path := range sortedPaths(files) {
		if len(files[path]) == 0 {
			continue
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f := keptDocFile{Path: name}
		for _, e := range files[path] {
			text, err := e.doc.Text()
			if err != nil {
				return err
			}
			f.Documents = append(f.Documents, keptDocument{string(text), e.read})
		}
		set.Files = append(set.Files, f)
	}
	data, err := json.Marshal(set)
	if err != nil {
		return err
	}
	if len(data) > keptMax {
		return fmt.Errorf("the policies are larger than %d MiB, and are not kept over a restart", keptMax>>20)
	}
	digest := sha256.Sum256(data)
	if digest == k.digest {
		return nil
	}
	if err := k.dir.Write(keptFile, data); err != nil {
		return err
	}
	k.digest = digest
	return nil
}
