// Checks an evidence file with other people's code: Go's implementations of signed notes and of RFC 6962's tree,
// which its module proxy and checksum database rely on, and of AES-GCM for what is encrypted. What is left for us is a
// hash over a block's header.
//
// Usage: evidence KEY FILE, with the public key's file. Prints how many blocks were proved.
package main

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type line struct {
	Kind       string
	Checkpoint string
	Rotations  []string
	Keys       map[string]string
	Index      int64
	Before     string
	Header     string
	Parts      []struct{ Sha256, Bytes string }
	Proof      []string
}

func unhex(text string) []byte {
	bytes, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return bytes
}

// leaf is the block's chain value, from what the file says of it.
func leaf(block line) []byte {
	chain := append(unhex(block.Before), unhex(block.Header)...)
	for _, part := range block.Parts {
		if part.Sha256 != "" {
			chain = append(chain, unhex(part.Sha256)...)
			continue
		}
		bytes, err := base64.StdEncoding.DecodeString(part.Bytes)
		if err != nil {
			panic(err)
		}
		hash := sha256.Sum256(bytes)
		chain = append(chain, hash[:]...)
	}
	hash := sha256.Sum256(chain)
	return hash[:]
}

// derive is what is made of a session's key for one purpose.
func derive(key []byte, label string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(label))
	return mac.Sum(nil)
}

// opens says whether the parts of a block that are shown are what their sessions' keys have encrypted, if anything has.
func opens(block line, keys map[string]string) error {
	for _, shown := range block.Parts {
		part, err := base64.StdEncoding.DecodeString(shown.Bytes)
		if err != nil {
			return err
		}
		if len(part) == 0 || part[0] != 2 {
			continue
		}
		key := unhex(keys[fmt.Sprintf("%016x", binary.LittleEndian.Uint64(part[1:]))])
		// A head of 25 bytes, 5 that say how the session begins, the agent's name behind its length, the commitment.
		head := 32 + int(binary.LittleEndian.Uint16(part[30:])) + 32
		if !bytes.Equal(part[head-32:head], derive(key, "interceptor session content: commitment")) {
			return errors.New("it was encrypted with another key")
		}
		block, err := aes.NewCipher(derive(key, "interceptor session content: AES-256-GCM"))
		if err != nil {
			return err
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return err
		}
		if _, err := gcm.Open(nil, part[head:head+12], part[head+12:], part[:head]); err != nil {
			return err
		}
	}
	return nil
}

// follow gives the key that the rotations lead to from one that was kept: each is signed by the key before the one that
// it names. Those before the kept key are signed by others, and lead nowhere.
func follow(verifier note.Verifier, rotations []string) (note.Verifier, error) {
	for _, rotation := range rotations {
		signed, err := note.Open([]byte(rotation), note.VerifierList(verifier))
		var unverified *note.UnverifiedNoteError
		if errors.As(err, &unverified) {
			continue
		}
		if err != nil {
			return nil, err
		}
		lines := strings.Split(signed.Text, "\n")
		if len(lines) < 3 || lines[0] != "interceptor/journal-key" || !strings.HasPrefix(lines[2], "new ") {
			continue
		}
		if verifier, err = note.NewVerifier(strings.TrimPrefix(lines[2], "new ")); err != nil {
			return nil, err
		}
	}
	return verifier, nil
}

func check(key, file string) (int, error) {
	text, err := os.ReadFile(key)
	if err != nil {
		return 0, err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	opened, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(opened)
	lines.Buffer(nil, 1<<30)
	var size int64
	var root tlog.Hash
	var keys map[string]string
	proved := 0
	for lines.Scan() {
		var next line
		if err := json.Unmarshal(lines.Bytes(), &next); err != nil {
			return proved, err
		}
		if next.Kind == "evidence" {
			keys = next.Keys
			if verifier, err = follow(verifier, next.Rotations); err != nil {
				return proved, err
			}
			signed, err := note.Open([]byte(next.Checkpoint), note.VerifierList(verifier))
			if err != nil {
				return proved, err
			}
			text := strings.Split(signed.Text, "\n")
			if _, err := fmt.Sscan(text[1], &size); err != nil {
				return proved, err
			}
			if root, err = tlog.ParseHash(text[2]); err != nil {
				return proved, err
			}
			continue
		}
		var proof tlog.RecordProof
		for _, hash := range next.Proof {
			var beside tlog.Hash
			copy(beside[:], unhex(hash))
			proof = append(proof, beside)
		}
		if err := tlog.CheckRecord(proof, size, root, next.Index, tlog.RecordHash(leaf(next))); err != nil {
			return proved, fmt.Errorf("block %d: %w", next.Index, err)
		}
		if err := opens(next, keys); err != nil {
			return proved, fmt.Errorf("block %d: %w", next.Index, err)
		}
		proved++
	}
	if err := lines.Err(); err != nil {
		return proved, err
	}
	if size == 0 {
		return proved, errors.New("no checkpoint")
	}
	return proved, nil
}

func main() {
	proved, err := check(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(proved)
}
