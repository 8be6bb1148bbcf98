// SPDX-License-Identifier: Apache-2.0

// Prints the modules of Android.bp files as JSON, as Blueprint's own parser reads them, with the
// lists and strings that are put together by "+" evaluated. What does not parse, or is not as bpfmt
// -s would have it, is an error.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/blueprint/parser"
)

type module struct {
	// The folder of the file that it stands in.
	Folder     string                 `json:"folder"`
	Type       string                 `json:"type"`
	Properties map[string]interface{} `json:"properties"`
}

func main() {
	modules := []module{}
	for _, path := range os.Args[1:] {
		found, err := read(path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(1)
		}
		modules = append(modules, found...)
	}
	if err := json.NewEncoder(os.Stdout).Encode(modules); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(path string) ([]module, error) {
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	file, errs := parser.ParseAndEval(path, bytes.NewReader(source), parser.NewScope(nil))
	if len(errs) > 0 {
		return nil, errs[0]
	}
	modules := []module{}
	for _, definition := range file.Defs {
		if found, ok := definition.(*parser.Module); ok {
			properties := value(&found.Map).(map[string]interface{})
			modules = append(modules, module{filepath.Dir(path), found.Type, properties})
		}
	}
	parser.SortLists(file)
	formatted, err := parser.Print(file)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(source, formatted) {
		return nil, fmt.Errorf("is not formatted; it should be\n%s", formatted)
	}
	return modules, nil
}

func value(expression parser.Expression) interface{} {
	switch v := expression.Eval().(type) {
	case *parser.Map:
		properties := map[string]interface{}{}
		for _, property := range v.Properties {
			properties[property.Name] = value(property.Value)
		}
		return properties
	case *parser.List:
		values := []interface{}{}
		for _, element := range v.Values {
			values = append(values, value(element))
		}
		return values
	case *parser.String:
		return v.Value
	case *parser.Bool:
		return v.Value
	case *parser.Int64:
		return v.Value
	default:
		return fmt.Sprint(v)
	}
}
