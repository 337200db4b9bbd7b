"""What the engines that take and give pictures share.

refusal   the one error (`BadRequest`) that says what was wrong with a request
source    where a picture in a request is: in it, beside it, or elsewhere     fetch    by URL, never reaching inside
decode    untrusted bytes to a picture                                        encode   pixels to a file
accept    whether the caller wants the picture itself or JSON around it
"""
