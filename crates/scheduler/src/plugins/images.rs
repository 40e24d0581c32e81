//! Prefers nodes that already hold the Pod's images, by their size and by how many nodes hold them: an image that only
//! one node has would otherwise draw all of its Pods there.
//!
//! How widely an image is spread is read when a node is judged, and the verdict is remembered until the node changes;
//! upstream's view of it is as old.

use std::sync::atomic::Ordering::Relaxed;

use crate::framework::MAX_SCORE;
use crate::pod::Class;
use crate::snapshot::NodeInfo;

/// Below this many bytes fetching an image is not worth a thought.
const LEAST: i64 = 23 << 20;
/// Beyond this many bytes per container more makes no difference.
const MOST_PER_CONTAINER: i64 = 1000 << 20;

pub fn score(class: &Class, info: &NodeInfo) -> i64 {
    if class.images.is_empty() || info.images.is_empty() {
        return 0;
    }
    let nodes = info.nodes.load(Relaxed).max(1) as f64;
    let here: i64 = class
        .images
        .iter()
        .filter_map(|image| info.images.get(image))
        .map(|image| (image.size as f64 * (image.nodes.load(Relaxed) as f64 / nodes)) as i64)
        .sum();
    let most = MOST_PER_CONTAINER * class.containers as i64;
    // As upstream's two comparisons: without containers the upper bound is below the lower one.
    let sum = if here < LEAST { LEAST } else { here.min(most) };
    if most <= LEAST {
        return 0;
    }
    MAX_SCORE * (sum - LEAST) / (most - LEAST)
}

/// Adds the tag an image name leaves out.
pub fn normalized(image: &str) -> String {
    if image.rfind(':') <= image.rfind('/') {
        format!("{image}:latest")
    } else {
        image.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Class;
    use crate::snapshot::Snapshot;
    use crate::testing::pod;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn names_get_their_tag() {
        for (given, expected) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("registry.example:5000/nginx", "registry.example:5000/nginx:latest"),
            ("a/b@sha256:00", "a/b@sha256:00"),
        ] {
            assert_eq!(normalized(given), expected);
        }
    }

    #[test]
    fn size_and_spread_count() {
        let node = |name: &str, images: &[(&str, i64)]| {
            let images: Vec<_> = images
                .iter()
                .map(|(name, megabytes)| json!({"names": [name], "sizeBytes": megabytes << 20}))
                .collect();
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "status": {"images": images}})).unwrap())
        };
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("n1", &[("big:1", 1000), ("small:latest", 40)]));
        snapshot.set_node(node("n2", &[("small:latest", 40)]));
        let class = |images: &[&str]| {
            let containers: Vec<_> = images
                .iter()
                .map(|image| json!({"name": "c", "image": image}))
                .collect();
            Class::of(&pod("p", json!({"containers": containers})))
        };
        let scores = |snapshot: &Snapshot, images: &[&str]| -> Vec<i64> {
            let class = class(images);
            snapshot.nodes().map(|(_, info)| score(&class, info)).collect()
        };
        // On one of two nodes: half of its size counts.
        assert_eq!(scores(&snapshot, &["big:1"]), [48, 0]);
        assert_eq!(scores(&snapshot, &["small"]), [1, 1]);
        assert_eq!(scores(&snapshot, &["big:1", "small"]), [26, 0]);
        assert_eq!(scores(&snapshot, &["absent"]), [0, 0]);
        snapshot.remove_node("n2");
        assert_eq!(scores(&snapshot, &["big:1"]), [100]);
        // The image went: so does its spread.
        snapshot.set_node(node("n1", &[]));
        snapshot.set_node(node("n2", &[("big:1", 1000)]));
        assert_eq!(scores(&snapshot, &["big:1"]), [0, 48]);
    }
}
