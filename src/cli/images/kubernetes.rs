//! The images of Kubernetes manifests: of every pod template in every document, whatever kind it stands in.

use std::collections::HashSet;
use std::rc::Rc;

use super::yaml::{Node, Value, documents};

/// Where pods name their containers.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// All images, each once. `Err`: the line and why.
pub fn images(text: &str) -> Result<Vec<String>, (usize, String)> {
    let mut finder = Finder::default();
    for document in documents(text)? {
        finder.visit(&document);
    }
    Ok(finder.found)
}

#[derive(Default)]
struct Finder {
    found: Vec<String>,
    /// What aliases share is looked at once.
    seen: HashSet<*const Node>,
}

impl Finder {
    /// Goes no deeper than a file's values may stand.
    fn visit(&mut self, node: &Rc<Node>) {
        if !self.seen.insert(Rc::as_ptr(node)) {
            return;
        }
        match &node.value {
            Value::List(items) => items.iter().for_each(|item| self.visit(item)),
            Value::Table(entries) => {
                for container in
                    CONTAINERS.iter().filter_map(|key| node.get(key)).flat_map(|list| list.list())
                {
                    self.add(container.get("image"));
                }
                for volume in node.get("volumes").into_iter().flat_map(|list| list.list()) {
                    self.add(volume.get("image").and_then(|image| image.get("reference")));
                }
                entries.iter().for_each(|(_, value)| self.visit(value));
            }
            Value::Null | Value::Text(_) => {}
        }
    }

    fn add(&mut self, image: Option<&Rc<Node>>) {
        if let Some(image) = image.and_then(|image| image.text())
            && !self.found.iter().any(|found| found == image)
        {
            self.found.push(image.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_template_is_found() {
        let text = "\
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      initContainers: [{name: a, image: 'busybox:1'}]
      containers:
        - {name: b, image: nginx}
        - {name: c, image: nginx}
        - {name: d}
      volumes:
        - {name: m, image: {reference: 'ghcr.io/org/model:1', pullPolicy: Always}}
        - {name: e, emptyDir: {}}
---
kind: List
items:
  - kind: CronJob
    spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: 'job:2'}]}}}}}
  - kind: Pod
    spec:
      ephemeralContainers:
        - image: debug:3
---
# nothing
---
kind: CustomResourceDefinition
spec: {schema: {properties: {containers: {type: array, items: {image: x}}, image: {type: string}}}}
---
kind: ConfigMap
data: {image: not-one, text: 'containers: [{image: neither}]'}
";
        let expected = ["busybox:1", "nginx", "ghcr.io/org/model:1", "job:2", "debug:3"];
        let mut found = images(text).unwrap();
        found.sort_unstable();
        let mut expected = expected.map(str::to_owned).to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected);
        let (line, _) = images("a: 1\nb: {{ .Values.image }}: x\n- y").unwrap_err();
        assert!(line >= 2, "{line}");
    }

    #[test]
    fn what_aliases_share_is_walked_once() {
        let mut bomb = "a0: &a0 {containers: [{image: x}]}\n".to_owned();
        for level in 1..40 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 9].join(", "));
        }
        assert_eq!(images(&bomb).unwrap(), ["x"]);
    }
}
