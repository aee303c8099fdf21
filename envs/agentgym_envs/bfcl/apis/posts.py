"""Short public posts, with comments, mentions and followers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api


class TwitterAPI(Api):
    """Posts, and comments on them, are kept by the post's number, written as text."""

    defaults: ClassVar[dict[str, Any]] = {
        "username": "john",
        "password": "john123",
        "authenticated": False,
        "tweets": {},
        "comments": {},
        "retweets": {},
        "following_list": ["alice", "bob"],
        "tweet_counter": 0,
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        for name in ("tweets", "comments"):
            self.state[name] = {str(key): one for key, one in self.state[name].items()}

    @tool
    def authenticate_twitter(self, username: str, password: str) -> Any:
        """Log in with a name and a password."""
        if (username, password) != (self.state["username"], self.state["password"]):
            return {"authentication_status": False}
        self.state["authenticated"] = True
        return {"authentication_status": True}

    @tool
    def posting_get_login_status(self) -> Any:
        """Tell whether somebody is logged in to post."""
        return {"login_status": bool(self.state["authenticated"])}

    @tool
    def post_tweet(self, content: str, tags: list[str] = [], mentions: list[str] = []) -> Any:  # noqa: B006 -- read only
        """Post something. Tags begin with #, mentions with @; give them only if the user wants some."""
        self._signed_in()
        number = self.state["tweet_counter"]
        tweet = {"id": number, "username": self.state["username"], "content": content, "tags": list(tags),
                 "mentions": list(mentions)}  # fmt: skip
        self.state["tweets"][str(number)] = tweet
        self.state["tweet_counter"] += 1
        return tweet

    @tool
    def retweet(self, tweet_id: int) -> Any:
        """Post somebody's post again."""
        self._signed_in()
        self._tweet(tweet_id)
        mine = self.state["retweets"].setdefault(self.state["username"], [])
        if tweet_id in mine:
            return {"retweet_status": "Already retweeted"}
        mine.append(tweet_id)
        return {"retweet_status": "Successfully retweeted"}

    @tool
    def comment(self, tweet_id: int, comment_content: str) -> Any:
        """Comment on a post."""
        self._signed_in()
        self._tweet(tweet_id)
        written = {"username": self.state["username"], "content": comment_content}
        self.state["comments"].setdefault(str(tweet_id), []).append(written)
        return {"comment_status": "Comment added"}

    @tool
    def mention(self, tweet_id: int, mentioned_usernames: list[str]) -> Any:
        """Mention people in a post that is there already."""
        self._tweet(tweet_id).setdefault("mentions", []).extend(mentioned_usernames)
        return {"mention_status": "Users mentioned"}

    @tool
    def follow_user(self, username_to_follow: str) -> Any:
        """Follow somebody; the answer is false if that is so already."""
        self._signed_in()
        new = username_to_follow not in self.state["following_list"]
        if new:
            self.state["following_list"].append(username_to_follow)
        return {"follow_status": new}

    @tool
    def unfollow_user(self, username_to_unfollow: str) -> Any:
        """Stop to follow somebody; the answer is false if nobody did."""
        self._signed_in()
        known = username_to_unfollow in self.state["following_list"]
        if known:
            self.state["following_list"].remove(username_to_unfollow)
        return {"unfollow_status": known}

    @tool
    def list_all_following(self) -> Any:
        """List whom the user follows."""
        self._signed_in()
        return {"following_list": self.state["following_list"]}

    @tool
    def get_tweet(self, tweet_id: int) -> Any:
        """Show a post."""
        return self._tweet(tweet_id)

    @tool
    def get_user_tweets(self, username: str) -> Any:
        """Show all posts of somebody."""
        return {"user_tweets": [one for one in self._tweets() if one.get("username") == username]}

    @tool
    def search_tweets(self, keyword: str) -> Any:
        """Find the posts that contain a word, or have it as a tag, whatever its case."""
        wanted = keyword.lower()
        texts = [(one, [one.get("content", ""), *one.get("tags", [])]) for one in self._tweets()]
        fits = [one for one, (content, *tags) in texts if wanted in content.lower() or wanted in map(str.lower, tags)]
        return {"matching_tweets": fits}

    @tool
    def get_tweet_comments(self, tweet_id: int) -> Any:
        """Show the comments on a post."""
        self._tweet(tweet_id)
        return {"comments": self.state["comments"].get(str(tweet_id), [])}

    @tool
    def get_user_stats(self, username: str) -> Any:
        """Count somebody's posts, whom they follow, and what they posted again."""
        mine = username == self.state["username"]
        return {
            "tweet_count": sum(one.get("username") == username for one in self._tweets()),
            "following_count": len(self.state["following_list"]) if mine else 0,
            "retweet_count": len(self.state["retweets"].get(username, [])),
        }

    def _signed_in(self) -> None:
        self.require("authenticated", "nobody is logged in; log in first")

    def _tweet(self, tweet_id: int) -> Any:
        if str(tweet_id) not in self.state["tweets"]:
            raise ValueError(f"there is no post {tweet_id}")
        return self.state["tweets"][str(tweet_id)]

    def _tweets(self) -> list[Any]:
        return list(self.state["tweets"].values())
