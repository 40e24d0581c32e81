//! `authentication.k8s.io/v1` and `authorization.k8s.io/v1`: questions that are answered and not stored.

use crate::spec::Resource;
use crate::table::review;

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

pub(crate) static AUTHENTICATION_RESOURCES: &[Resource] = &[
    review(
        AUTHENTICATION,
        "SelfSubjectReview",
        "SelfSubjectReviewList",
        "selfsubjectreviews",
        "selfsubjectreview",
    ),
    review(
        AUTHENTICATION,
        "TokenReview",
        "TokenReviewList",
        "tokenreviews",
        "tokenreview",
    ),
];

pub(crate) static AUTHORIZATION_RESOURCES: &[Resource] = &[
    Resource {
        namespaced: true,
        ..review(
            AUTHORIZATION,
            "LocalSubjectAccessReview",
            "LocalSubjectAccessReviewList",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
        )
    },
    review(
        AUTHORIZATION,
        "SelfSubjectAccessReview",
        "SelfSubjectAccessReviewList",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
    ),
    review(
        AUTHORIZATION,
        "SelfSubjectRulesReview",
        "SelfSubjectRulesReviewList",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
    ),
    review(
        AUTHORIZATION,
        "SubjectAccessReview",
        "SubjectAccessReviewList",
        "subjectaccessreviews",
        "subjectaccessreview",
    ),
];
