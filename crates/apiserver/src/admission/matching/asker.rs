//! The authorizer library of CEL: questions about rights, answered for the user of the request or a service account.

use sampan_auth::{Attributes, Authorizer, UserInfo};
use sampan_cel::{Authorize, Decision, Question};

pub struct Asker<'a> {
    pub authorizer: &'a Authorizer,
    pub user: &'a UserInfo,
}

impl Authorize for Asker<'_> {
    fn authorize(&self, question: &Question<'_>) -> Decision {
        let account = question
            .service_account
            .map(|(namespace, name)| UserInfo::service_account(namespace, name, ""));
        let user = account.as_ref().unwrap_or(self.user);
        let attributes = match question.path {
            Some(path) => Attributes::path(user, question.verb, path),
            None => Attributes {
                version: "*",
                subresource: question.subresource,
                namespace: question.namespace,
                name: question.name,
                ..Attributes::resource(user, question.verb, question.group, question.resource)
            },
        };
        let decision = self.authorizer.authorize(&attributes);
        Decision {
            allowed: decision.allowed,
            reason: decision.reason,
            error: None,
        }
    }
}
