//! `admissionregistration.k8s.io/v1`: webhooks and admission policies.

mod expressions;
mod print;
mod strategies;
mod validate;

use crate::spec::Resource;
use crate::table::{row, status};

const GROUP: &str = "admissionregistration.k8s.io";
const CATEGORIES: &[&str] = &["api-extensions"];

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        categories: CATEGORIES,
        columns: print::MUTATING_POLICY,
        cells: print::mutating_policy,
        strategy: &strategies::MUTATING_POLICY,
        ..row(
            GROUP,
            "MutatingAdmissionPolicy",
            "MutatingAdmissionPolicyList",
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicy",
        )
    },
    Resource {
        namespaced: false,
        categories: CATEGORIES,
        columns: print::BINDING,
        cells: print::binding,
        strategy: &strategies::BINDING,
        ..row(
            GROUP,
            "MutatingAdmissionPolicyBinding",
            "MutatingAdmissionPolicyBindingList",
            "mutatingadmissionpolicybindings",
            "mutatingadmissionpolicybinding",
        )
    },
    Resource {
        namespaced: false,
        categories: CATEGORIES,
        columns: print::WEBHOOKS,
        cells: print::webhooks,
        strategy: &strategies::MUTATING_WEBHOOK,
        ..row(
            GROUP,
            "MutatingWebhookConfiguration",
            "MutatingWebhookConfigurationList",
            "mutatingwebhookconfigurations",
            "mutatingwebhookconfiguration",
        )
    },
    Resource {
        namespaced: false,
        categories: CATEGORIES,
        subresources: &[status("ValidatingAdmissionPolicy")],
        columns: print::VALIDATING_POLICY,
        cells: print::validating_policy,
        strategy: &strategies::VALIDATING_POLICY,
        ..row(
            GROUP,
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyList",
            "validatingadmissionpolicies",
            "validatingadmissionpolicy",
        )
    },
    Resource {
        namespaced: false,
        categories: CATEGORIES,
        columns: print::BINDING,
        cells: print::binding,
        strategy: &strategies::BINDING,
        ..row(
            GROUP,
            "ValidatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicyBindingList",
            "validatingadmissionpolicybindings",
            "validatingadmissionpolicybinding",
        )
    },
    Resource {
        namespaced: false,
        categories: CATEGORIES,
        columns: print::WEBHOOKS,
        cells: print::webhooks,
        strategy: &strategies::VALIDATING_WEBHOOK,
        ..row(
            GROUP,
            "ValidatingWebhookConfiguration",
            "ValidatingWebhookConfigurationList",
            "validatingwebhookconfigurations",
            "validatingwebhookconfiguration",
        )
    },
];
