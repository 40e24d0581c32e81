//! Prefers nodes that already hold the Pod's images, by their size.

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
    let most = MOST_PER_CONTAINER * class.images.len() as i64;
    let here: i64 = class
        .images
        .iter()
        .filter_map(|image| info.images.get(&normalized(image)))
        .sum();
    (here.clamp(LEAST, most) - LEAST) * MAX_SCORE / (most - LEAST)
}

/// Adds the tag an image name leaves out.
fn normalized(image: &str) -> String {
    let after_slash = image.rfind('/').map_or(0, |at| at + 1);
    if image.contains('@') || image[after_slash..].contains(':') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}
