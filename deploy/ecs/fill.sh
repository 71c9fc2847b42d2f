#!/bin/sh
# Print a file with the variables of this folder put in: ${AWS_ACCOUNT} ${REGION} ${IMAGE_TAG} ${TARGET_GROUP_ARN} ${LOAD_BALANCER}.
set -eu
if [ "${1:-}" = --help ] || [ $# -ne 1 ]; then
  echo "fill.sh FILE: print FILE with AWS_ACCOUNT, REGION, IMAGE_TAG, TARGET_GROUP_ARN and LOAD_BALANCER put in; exit code 1 if one that it names is not set"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
text=$(cat "$1")
for name in AWS_ACCOUNT REGION IMAGE_TAG TARGET_GROUP_ARN LOAD_BALANCER; do
  case $text in *"\${$name}"*)
    eval "value=\${$name:-}"
    # shellcheck disable=SC2154  # value is set by eval
    if [ -z "$value" ]; then echo "fill.sh: $1 needs $name: set it" >&2; exit 1; fi
    text=$(printf '%s\n' "$text" | sed "s|\${$name}|$value|g") ;;
  esac
done
printf '%s\n' "$text"
