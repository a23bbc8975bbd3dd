// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/promweave/promweave/bins/promweave/internal/config"
)

// object is the part of a Kubernetes object that the tests look at.
type object struct {
	Kind     string
	Metadata struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Data map[string]string
	Spec struct {
		Replicas     int
		ServiceName  string `yaml:"serviceName"`
		ClusterIP    string `yaml:"clusterIP"`
		Selector     map[string]any
		MinAvailable int `yaml:"minAvailable"`
		Ports        []struct {
			Name       string
			Port       int
			TargetPort string `yaml:"targetPort"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     podSpec
		}
	}
}

type podSpec struct {
	AutomountServiceAccountToken  *bool `yaml:"automountServiceAccountToken"`
	EnableServiceLinks            *bool `yaml:"enableServiceLinks"`
	TerminationGracePeriodSeconds int   `yaml:"terminationGracePeriodSeconds"`
	SecurityContext               struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		RunAsUser    int  `yaml:"runAsUser"`
	} `yaml:"securityContext"`
	Affinity struct {
		PodAntiAffinity struct {
			Preferred []struct {
				PodAffinityTerm struct {
					TopologyKey   string `yaml:"topologyKey"`
					LabelSelector struct {
						MatchLabels map[string]string `yaml:"matchLabels"`
					} `yaml:"labelSelector"`
				} `yaml:"podAffinityTerm"`
			} `yaml:"preferredDuringSchedulingIgnoredDuringExecution"`
		} `yaml:"podAntiAffinity"`
	}
	Containers []container
	Volumes    []struct {
		Name      string
		ConfigMap struct{ Name string } `yaml:"configMap"`
		Secret    struct {
			Name string `yaml:"secretName"`
		}
	}
}

type container struct {
	Name, Image string
	Args        []string
	Ports       []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	LivenessProbe  probe `yaml:"livenessProbe"`
	ReadinessProbe probe `yaml:"readinessProbe"`
	Lifecycle      struct {
		PreStop struct {
			Sleep struct{ Seconds int }
		} `yaml:"preStop"`
	}
	Resources struct {
		Requests, Limits map[string]string
	}
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	HTTPGet   struct{ Path, Port string } `yaml:"httpGet"`
	TCPSocket struct{ Port string }       `yaml:"tcpSocket"`
}

// render runs kustomize as kubectl does, with its load restrictions.
func render(t *testing.T, dir string) []object {
	t.Helper()
	res, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []object
	for _, r := range res.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		var o object
		if err := yaml.Unmarshal(text, &o); err != nil {
			t.Fatalf("%s: %v", r.GetName(), err)
		}
		out = append(out, o)
	}
	return out
}

func find(t *testing.T, objs []object, kind, name string) object {
	t.Helper()
	for _, o := range objs {
		if o.Kind == kind && (o.Metadata.Name == name || kind == "ConfigMap" && strings.HasPrefix(o.Metadata.Name, name+"-")) {
			return o
		}
	}
	t.Fatalf("no %s %q is rendered", kind, name)
	return object{}
}

func TestManifests(t *testing.T) {
	for dir, count := range map[string]struct{ workloads, lookups int }{"base": {2, 4}, "overlays/example": {2, 4}, "overlays/plugin": {3, 5}} {
		t.Run(dir, func(t *testing.T) {
			objs := render(t, filepath.Join("..", "..", "k8s", dir))
			var workloads int
			for _, o := range objs {
				if (o.Metadata.Namespace != "") != (dir != "base") {
					t.Errorf("%s %s is in namespace %q", o.Kind, o.Metadata.Name, o.Metadata.Namespace)
				}
				if o.Kind == "Deployment" || o.Kind == "StatefulSet" {
					workloads++
					t.Run(o.Metadata.Name, func(t *testing.T) { checkWorkload(t, o, objs) })
				}
			}
			if workloads != count.workloads {
				t.Errorf("%d workloads, want the queriers, Prometheus, and the plug-in where there is one", workloads)
			}
			checkServices(t, objs)
			checkDiscovery(t, objs, count.lookups)
			if dir != "base" {
				for _, o := range objs {
					for _, c := range o.Spec.Template.Spec.Containers {
						if !strings.Contains(c.Image, ":") {
							t.Errorf("%s/%s has image %q without a tag", o.Metadata.Name, c.Name, c.Image)
						}
					}
				}
			}
		})
	}
}

func checkWorkload(t *testing.T, o object, objs []object) {
	pod := o.Spec.Template.Spec
	if o.Spec.Replicas != 2 {
		t.Errorf("%d replicas", o.Spec.Replicas)
	}
	if !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.RunAsUser == 0 {
		t.Error("may run as root")
	}
	if b := pod.EnableServiceLinks; b == nil || *b {
		t.Error("has every Service in its environment")
	}
	if b := pod.AutomountServiceAccountToken; b == nil || *b {
		t.Error("has a token of the Kubernetes API, which it does not need")
	}
	anti := pod.Affinity.PodAntiAffinity.Preferred
	if len(anti) == 0 || anti[0].PodAffinityTerm.TopologyKey != "kubernetes.io/hostname" ||
		!subset(anti[0].PodAffinityTerm.LabelSelector.MatchLabels, o.Spec.Template.Metadata.Labels) {
		t.Error("both replicas may be on one node")
	}
	find(t, objs, "PodDisruptionBudget", o.Metadata.Name)

	ports := map[int]string{}
	for _, c := range pod.Containers {
		for _, p := range c.Ports {
			if other, dup := ports[p.ContainerPort]; dup {
				t.Errorf("%s and %s both listen on %d", other, c.Name, p.ContainerPort)
			}
			ports[p.ContainerPort] = c.Name
			if len(p.Name) > 15 {
				t.Errorf("the name of port %q is longer than Kubernetes allows", p.Name)
			}
		}
		for what, p := range map[string]probe{"/-/healthy": c.LivenessProbe, "/-/ready": c.ReadinessProbe} {
			if o.Metadata.Labels["app.kubernetes.io/component"] == "plugin" {
				if portOf(c, p.TCPSocket.Port) == 0 {
					t.Errorf("%s: a probe is %+v", c.Name, p)
				}
				continue
			}
			if p.HTTPGet.Path != what || portOf(c, p.HTTPGet.Port) == 0 {
				t.Errorf("%s: no probe of %s on a port that it has: %+v", c.Name, what, p)
			}
		}
		s := c.SecurityContext
		if !s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !slices.Contains(s.Capabilities.Drop, "ALL") {
			t.Errorf("%s has more rights than it needs: %+v", c.Name, s)
		}
		if c.Resources.Requests["cpu"] == "" || c.Resources.Requests["memory"] == "" || c.Resources.Limits["memory"] == "" {
			t.Errorf("%s: resources are %+v", c.Name, c.Resources)
		}
		if c.Name == "promweave" {
			checkPromweave(t, c, pod, objs)
		}
		for _, a := range c.Args {
			if _, file, ok := strings.Cut(a, "="); ok && o.Metadata.Labels["app.kubernetes.io/component"] == "plugin" && strings.HasPrefix(file, "/") {
				checkSecret(t, file, c, pod)
			}
		}
	}
}

// checkSecret: a file comes from a Secret that is mounted.
func checkSecret(t *testing.T, file string, c container, pod podSpec) {
	t.Helper()
	for _, m := range c.VolumeMounts {
		for _, v := range pod.Volumes {
			if m.Name == v.Name && v.Secret.Name != "" && m.MountPath == filepath.Dir(file) {
				return
			}
		}
	}
	t.Errorf("%s: %s is in no Secret that is mounted", c.Name, file)
}

// checkPromweave loads the configuration that the container will have, and holds
// the manifest against it.
func checkPromweave(t *testing.T, c container, pod podSpec, objs []object) {
	const arg = "--config="
	i := slices.IndexFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, arg) })
	if i < 0 || c.Args[0] != "serve" {
		t.Fatalf("args are %q", c.Args)
	}
	dir, file := filepath.Split(strings.TrimPrefix(c.Args[i], arg))
	var text string
	for _, m := range c.VolumeMounts {
		for _, v := range pod.Volumes {
			if m.Name == v.Name && filepath.Clean(dir) == m.MountPath {
				text = find(t, objs, "ConfigMap", v.ConfigMap.Name).Data[file]
			}
		}
	}
	if text == "" {
		t.Fatalf("no mounted ConfigMap has %s", file)
	}
	path := filepath.Join(t.TempDir(), file)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, listen := range map[string]string{"http": cfg.HTTP.Listen, "grpc": cfg.GRPC.Listen} {
		if want := fmt.Sprintf(":%d", portOf(c, name)); listen != want {
			t.Errorf("%s listens on %s, the container has %s", name, listen, want)
		}
	}
	for _, b := range cfg.Backends {
		if b.TSDB != nil && !b.TSDB.ReadOnly {
			t.Errorf("backend %s writes to %s, and the file system is read-only", b.Name, b.TSDB.Path)
		}
		if p := b.Plugin; p != nil {
			if p.Launch != config.LaunchDial || !p.TLS.Enabled {
				t.Errorf("backend %s: the plug-in is %+v", b.Name, p)
			}
			for _, file := range []string{p.TLS.CA, p.TLS.Cert, p.TLS.Key} {
				checkSecret(t, file, c, pod)
			}
		}
	}
	stop := cfg.Query.Timeout + time.Duration(c.Lifecycle.PreStop.Sleep.Seconds)*time.Second
	if grace := time.Duration(pod.TerminationGracePeriodSeconds) * time.Second; grace <= stop {
		t.Errorf("killed after %s, while queries may take %s", grace, stop)
	}
}

func checkServices(t *testing.T, objs []object) {
	for _, s := range objs {
		if s.Kind != "Service" {
			continue
		}
		selector := map[string]string{}
		for k, v := range s.Spec.Selector {
			selector[k] = fmt.Sprint(v)
		}
		var found bool
		for _, w := range objs {
			if len(w.Spec.Template.Spec.Containers) == 0 || !subset(selector, w.Spec.Template.Metadata.Labels) {
				continue
			}
			found = true
			for _, p := range s.Spec.Ports {
				var target int
				for _, c := range w.Spec.Template.Spec.Containers {
					target += portOf(c, p.TargetPort)
				}
				// Of a headless Service clients use the pods' own ports.
				if target == 0 || s.Spec.ClusterIP == "None" && target != p.Port {
					t.Errorf("Service %s: port %s (%d) leads to %d", s.Metadata.Name, p.Name, p.Port, target)
				}
			}
		}
		if !found {
			t.Errorf("Service %s selects no pod", s.Metadata.Name)
		}
	}
	for _, o := range objs {
		if o.Kind == "StatefulSet" {
			if s := find(t, objs, "Service", o.Spec.ServiceName); s.Spec.ClusterIP != "None" {
				t.Errorf("Service %s of a StatefulSet is not headless", s.Metadata.Name)
			}
		}
	}
}

// checkDiscovery: every SRV name in the configurations is a headless Service and
// one of its ports.
func checkDiscovery(t *testing.T, objs []object, want int) {
	var names []string
	path := filepath.Join(t.TempDir(), "promweave.yaml")
	text := find(t, objs, "ConfigMap", "promweave-querier-config").Data["promweave.yaml"]
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range cfg.Backends {
		if b.StoreAPI != nil {
			names = append(names, strings.TrimPrefix(b.StoreAPI.Address, "dnssrv+"))
		}
		if b.Plugin != nil {
			names = append(names, strings.TrimPrefix(b.Plugin.Address, "dnssrv+"))
		}
	}
	var prom struct {
		Global struct {
			ExternalLabels map[string]string `yaml:"external_labels"`
		}
		ScrapeConfigs []struct {
			DNS []struct{ Names []string } `yaml:"dns_sd_configs"`
		} `yaml:"scrape_configs"`
	}
	text = find(t, objs, "ConfigMap", "prometheus-config").Data["prometheus.yml"]
	if err := yaml.Unmarshal([]byte(text), &prom); err != nil {
		t.Fatal(err)
	}
	for _, s := range prom.ScrapeConfigs {
		for _, d := range s.DNS {
			names = append(names, d.Names...)
		}
	}
	if len(names) != want {
		t.Errorf("%d names are looked up, want %d: %q", len(names), want, names)
	}
	for _, name := range names {
		port, rest, _ := strings.Cut(name, ".")
		proto, service, _ := strings.Cut(rest, ".")
		s := find(t, objs, "Service", service)
		if i := slices.IndexFunc(s.Spec.Ports, func(p struct {
			Name       string
			Port       int
			TargetPort string `yaml:"targetPort"`
		}) bool {
			return "_"+p.Name == port
		}); i < 0 || proto != "_tcp" || s.Spec.ClusterIP != "None" {
			t.Errorf("%s finds nothing", name)
		}
	}
	for _, name := range cfg.Query.ReplicaLabels {
		if v := prom.Global.ExternalLabels[name]; v != "${POD_NAME}" {
			t.Errorf("replica label %s is %q in all replicas", name, v)
		}
	}
}

func portOf(c container, name string) int {
	for _, p := range c.Ports {
		if p.Name == name {
			return p.ContainerPort
		}
	}
	return 0
}

func subset(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) > 0
}
