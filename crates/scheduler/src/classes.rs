//! The classes in use, and which labels tell them apart.
//!
//! Pods of one workload often differ in a label that nobody asks about: a job's completion index, a stateful set's Pod
//! name. A class therefore has only those labels whose keys some selector read so far: of Pods' affinity terms and
//! spread constraints, and, for spreading by default, of Services and workloads. When a selector comes that reads another
//! key, [`Classes::learn`] says so, and the Pods that have it change their class ([`Classes::again`]). Keys are never
//! forgotten: they are few.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use crate::labels::Labels;
use crate::pod::{Class, ClassId};

#[derive(Debug, Default)]
pub struct Classes {
    keys: HashSet<String>,
    known: HashMap<ClassId, Weak<Class>>,
    /// How many may be known before those that are gone are swept out.
    limit: usize,
}

impl Classes {
    /// Notes that a selector reads these keys; returns those that are new.
    pub fn learn<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut new = Vec::new();
        for key in keys {
            if !self.keys.contains(key) {
                self.keys.insert(key.to_owned());
                new.push(key.to_owned());
            }
        }
        new
    }

    fn read(&self, labels: &Labels) -> Labels {
        let read = labels.iter().filter(|(key, _)| self.keys.contains(*key));
        read.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The class of Pods with these labels that ask for what `class` does: one object for all of them.
    pub fn of(&mut self, class: Class, labels: &Labels) -> Arc<Class> {
        let labels = self.read(labels);
        let id = class.id_with(&labels);
        self.known(id).unwrap_or_else(|| self.keep(class.labelled(labels)))
    }

    /// The class of a Pod whose class was `class` before keys were learned.
    pub fn again(&mut self, class: &Class, labels: &Labels) -> Arc<Class> {
        let labels = self.read(labels);
        let id = class.id_with(&labels);
        self.known(id)
            .unwrap_or_else(|| self.keep(class.clone().labelled(labels)))
    }

    fn known(&self, id: ClassId) -> Option<Arc<Class>> {
        self.known.get(&id)?.upgrade()
    }

    fn keep(&mut self, mut class: Class) -> Arc<Class> {
        if self.known.len() >= self.limit {
            self.known.retain(|_, class| class.strong_count() > 0);
            self.limit = self.known.len() * 2 + 1024;
        }
        // It stands for those that are bound and for those that wait.
        class.node_name = None;
        let class = Arc::new(class);
        self.known.insert(class.id, Arc::downgrade(&class));
        class
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::labelled_pod;
    use serde_json::json;

    #[test]
    fn labels_that_nobody_reads_make_no_difference() {
        let mut classes = Classes::default();
        let pod = |index: &str| labelled_pod(index, json!({"app": "web", "index": index}), json!({"containers": []}));
        let class = |classes: &mut Classes, index: &str| {
            let pod = pod(index);
            classes.of(Class::without_labels(&pod), pod.metadata.labels.as_ref().unwrap())
        };
        let (first, second) = (class(&mut classes, "1"), class(&mut classes, "2"));
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(classes.learn(["app", "app"]), ["app"]);
        assert_eq!(class(&mut classes, "1").id, class(&mut classes, "2").id);
        assert_ne!(class(&mut classes, "1").id, first.id);
        assert_eq!(classes.learn(["index", "app"]), ["index"]);
        assert_ne!(class(&mut classes, "1").id, class(&mut classes, "2").id);
        let again = classes.again(&first, pod("1").metadata.labels.as_ref().unwrap());
        assert_eq!(again.id, class(&mut classes, "1").id);
    }
}
