//! `autoscaling`: HorizontalPodAutoscalers, stored as `v2`, served as `v1` and `v2`.

mod convert;
mod print;
mod strategy;
mod validate;

use crate::spec::Resource;
use crate::table::{row, status};

const V2: Resource = Resource {
    version: "v2",
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[status("HorizontalPodAutoscaler")],
    columns: print::COLUMNS,
    cells: print::cells,
    strategy: &strategy::RULES,
    ..row(
        "autoscaling",
        "HorizontalPodAutoscaler",
        "HorizontalPodAutoscalerList",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
};

pub(crate) static RESOURCES: &[Resource] = &[
    V2,
    Resource {
        version: "v1",
        stored_as: Some(convert::CONVERSION),
        strategy: &strategy::V1_RULES,
        ..V2
    },
];
